// The contender "River": a program of riverq's own that does with the real River what the harness of benchmarks/ asks.
//
// One process does one task. The first line of standard input is the task, later lines are what the harness says
// ({"do": "go"}, {"do": "stop"}); standard output carries one JSON object a line, standard error is free text.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// A task as the harness words it; which fields count depends on the task.
type task struct {
	Task      string `json:"task"`
	URL       string `json:"url"`
	Settings  string `json:"settings"`  // default, tuned
	Schema    string `json:"schema"`    // of River's tables; empty leaves it to the search_path
	Listen    *bool  `json:"listen"`    // false: poll only
	Samples   *bool  `json:"samples"`   // false: latency keeps its samples to itself
	PgBouncer bool   `json:"pgbouncer"` // a pooler in transaction mode stands between

	Count   int     `json:"count"`   // fill
	Mode    string  `json:"mode"`    // insert: single, single_tx, batch, copy
	Batch   int     `json:"batch"`   // jobs a call
	Seconds float64 `json:"seconds"` // insert, latency
	Workers int     `json:"workers"` // work, latency
	Job     string  `json:"job"`     // work: noop, sleep
	SleepMS float64 `json:"sleep_ms"`
	Until   int64   `json:"until"`
	Insert  int     `json:"insert"`
	Rate    float64 `json:"rate"` // latency
}

var handlers = map[string]func(context.Context, *child) error{
	"migrate": migrate,
	"fill":    fill,
	"insert":  insert,
	"work":    work,
	"latency": latency,
}

func main() {
	// What a library prints must not break the protocol, so that standard output is known to `child` alone.
	out := os.Stdout
	os.Stdout = os.Stderr

	c := &child{in: bufio.NewReader(os.Stdin), out: json.NewEncoder(out)}
	if err := perform(context.Background(), c); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		c.emit("error", fields{"message": err.Error()})
		os.Exit(1)
	}
}

func perform(ctx context.Context, c *child) error {
	if err := c.readTask(); err != nil {
		return err
	}
	if c.task.Settings != "default" && c.task.Settings != "tuned" {
		return fmt.Errorf("unknown settings %q, there are: default, tuned", c.task.Settings)
	}
	handler, ok := handlers[c.task.Task]
	if !ok {
		return fmt.Errorf("unknown task %q, there are: migrate, fill, insert, work, latency", c.task.Task)
	}
	err := handler(ctx, c)
	if unsupported := (unsupportedError{}); errors.As(err, &unsupported) {
		c.emit("unsupported", fields{"message": unsupported.why})
		return nil
	}
	if err == nil && c.task.Task == "insert" {
		c.linger()
	}
	return err
}
