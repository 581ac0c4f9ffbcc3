package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
)

// Works until told to stop, and inserts beside that where the task asks for it.
func work(ctx context.Context, c *child) error {
	run, err := jobOf(c)
	if err != nil {
		return err
	}
	pool, err := newPool(ctx, &c.task)
	if err != nil {
		return err
	}
	client, err := newWorker(pool, &c.task, run)
	if err != nil {
		return err
	}
	if err := c.awaitGo(); err != nil {
		return err
	}

	beside, cancel := context.WithCancel(ctx)
	defer cancel()
	inserted := make(chan error, 1)
	go func() { inserted <- insertAll(beside, c, client) }()
	go c.reportProgress(beside)
	if err := client.Start(ctx); err != nil {
		return err
	}
	if err := awaitStop(c, inserted, cancel); err != nil {
		return err
	}
	return finish(ctx, c, client, pool)
}

// The work function of the kind of job that the task names.
func jobOf(c *child) (workFunc, error) {
	switch c.task.Job {
	case "noop":
		return func(context.Context, *river.Job[benchArgs]) error {
			c.done()
			return nil
		}, nil
	case "sleep":
		wait := seconds(c.task.SleepMS / 1000)
		return func(ctx context.Context, _ *river.Job[benchArgs]) error {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-timer.C:
			}
			c.done()
			return nil
		}, nil
	}
	return nil, fmt.Errorf("unknown job %q, there are: noop, sleep", c.task.Job)
}

func insertAll(ctx context.Context, c *child, client *river.Client[pgx.Tx]) error {
	batch := orDefault(c.task.Batch, defaultBatch)
	for start := 0; start < c.task.Insert; start += batch {
		if _, err := client.InsertMany(ctx, numbered(start, min(batch, c.task.Insert-start))); err != nil {
			return fmt.Errorf("cannot insert jobs from number %d on: %w", start, err)
		}
	}
	return nil
}

// Waits for the harness's stop and for the end of the inserting, which a stop cuts short.
func awaitStop(c *child, inserted <-chan error, cancelInserts context.CancelFunc) error {
	told := make(chan error, 1)
	go func() { told <- c.expect("stop") }()
	select {
	case err := <-inserted:
		if err != nil {
			return err
		}
		return <-told
	case err := <-told:
		cancelInserts()
		<-inserted // its error is that it was cancelled
		return err
	}
}
