package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// Together a little less than the 10 s after which the harness kills.
const (
	softStop = 8 * time.Second
	hardStop = 1500 * time.Millisecond
)

type benchArgs struct {
	Number int64   `json:"number"`
	At     float64 `json:"at"` // Unix time just before the insert, where the task measures latency
}

func (benchArgs) Kind() string { return "bench" }

type workFunc = func(ctx context.Context, job *river.Job[benchArgs]) error

// A pool of pgx's own default size, which River's bench command leaves as it is too: 4, or the number of CPUs where
// that is more. It connects on first use only.
func newPool(ctx context.Context, t *task) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(t.URL)
	if err != nil {
		return nil, fmt.Errorf("cannot read the address %q: %w", t.URL, err)
	}
	if t.PgBouncer {
		// Statements that a server connection remembers, or descriptions fetched from another one, do not outlive a
		// transaction there. Mode `exec` needs neither: one round trip of the extended protocol, arguments as text.
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
		config.ConnConfig.StatementCacheCapacity = 0
		config.ConnConfig.DescriptionCacheCapacity = 0
	}
	return pgxpool.NewWithConfig(ctx, config)
}

// River's own default logger writes the same levels, but to standard output, where the protocol is.
func logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// A client that only inserts.
func newInserter(pool *pgxpool.Pool, t *task) (*river.Client[pgx.Tx], error) {
	return river.NewClient(riverpgxv5.New(pool), &river.Config{Logger: logger(), Schema: t.Schema})
}

// A client that works "bench" jobs with `run`, and inserts too.
func newWorker(pool *pgxpool.Pool, t *task, run workFunc) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(run))
	config := &river.Config{
		Logger:   logger(),
		PollOnly: t.Listen != nil && !*t.Listen,
		Queues:   map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: t.Workers}},
		Schema:   t.Schema,
		Workers:  workers,
	}
	if t.Settings == "tuned" {
		config.FetchCooldown = 2 * time.Millisecond
		config.FetchPollInterval = 20 * time.Millisecond
	}
	return river.NewClient(riverpgxv5.New(pool), config)
}

// Stops the client, tells how many jobs it has run, and closes the pool.
func finish(ctx context.Context, c *child, client *river.Client[pgx.Tx], pool *pgxpool.Pool) error {
	if err := stopClient(ctx, client); err != nil {
		return err
	}
	c.emitStopped()
	pool.Close()
	return nil
}

// Stops a client gently, and by cancelling its jobs where that takes too long.
func stopClient(ctx context.Context, client *river.Client[pgx.Tx]) error {
	gently, cancel := context.WithTimeout(ctx, softStop)
	defer cancel()
	err := client.Stop(gently)
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	fmt.Fprintf(os.Stderr, "jobs still run %s after Stop, cancelling them\n", softStop)
	hard, cancel := context.WithTimeout(ctx, hardStop)
	defer cancel()
	if err := client.StopAndCancel(hard); err != nil {
		return fmt.Errorf("the client did not stop within %s: %w", softStop+hardStop, err)
	}
	return nil
}
