package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const progressInterval = 50 * time.Millisecond

type fields map[string]any

// What River has no way of doing; the harness shows why.
type unsupportedError struct{ why string }

func (e unsupportedError) Error() string { return e.why }

// The child's half of the protocol.
type child struct {
	task task
	in   *bufio.Reader

	writing sync.Mutex
	out     *json.Encoder
	told    int64 // the last count that was written; guarded by writing

	executed atomic.Int64
}

func (c *child) readTask() error {
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("expected a task on standard input: %w", err)
	}
	if err := json.Unmarshal(line, &c.task); err != nil {
		return fmt.Errorf("not a task: %s: %w", bytes.TrimSpace(line), err)
	}
	return nil
}

func (c *child) emit(event string, more fields) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.write(event, more)
}

func (c *child) write(event string, more fields) {
	line := fields{"event": event}
	for name, value := range more {
		line[name] = value
	}
	if err := c.out.Encode(line); err != nil {
		fmt.Fprintln(os.Stderr, "the harness has gone:", err)
		os.Exit(1)
	}
}

// Says that everything is ready, and waits for the clock's start.
func (c *child) awaitGo() error {
	c.emit("ready", nil)
	return c.expect("go")
}

func (c *child) expect(word string) error {
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("waited for the harness to say %q: %w", word, err)
	}
	var said struct {
		Do string `json:"do"`
	}
	if err := json.Unmarshal(line, &said); err != nil || said.Do != word {
		return fmt.Errorf("expected the harness to say %q, got: %s", word, bytes.TrimSpace(line))
	}
	return nil
}

// Waits to be ended: a process that is gone has no memory to be read.
func (c *child) linger() { _, _ = c.in.ReadBytes('\n') }

// One more job has run. Called by the jobs themselves; the one that makes the number full tells it at once.
func (c *child) done() {
	if count := c.executed.Add(1); count == c.task.Until {
		c.tell(count)
	}
}

// Writes a count, unless a newer one has been written meanwhile.
func (c *child) tell(count int64) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if count > c.told {
		c.told = count
		c.write("progress", fields{"count": count})
	}
}

// Tells the count of executed jobs for as long as it changes, until the context ends.
func (c *child) reportProgress(ctx context.Context) {
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.tell(c.executed.Load())
		}
	}
}

// The last line of a task that works jobs.
func (c *child) emitStopped() { c.emit("stopped", fields{"executed": c.executed.Load()}) }
