package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

const (
	defaultBatch = 1000
	fillBatch    = 5000
)

func migrate(ctx context.Context, c *child) error {
	pool, err := newPool(ctx, &c.task)
	if err != nil {
		return err
	}
	migrator, err := rivermigrate.New(
		riverpgxv5.New(pool), &rivermigrate.Config{Logger: logger(), Schema: c.task.Schema},
	)
	if err != nil {
		return err
	}
	if err := c.awaitGo(); err != nil {
		return err
	}
	if c.task.Schema != "" {
		if _, err := pool.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{c.task.Schema}.Sanitize()); err != nil {
			return fmt.Errorf("cannot create schema %q: %w", c.task.Schema, err)
		}
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	c.emit("result", nil)
	pool.Close()
	return nil
}

func fill(ctx context.Context, c *child) error {
	pool, client, err := inserter(ctx, c)
	if err != nil {
		return err
	}
	for start := 0; start < c.task.Count; start += fillBatch {
		many := numbered(start, min(fillBatch, c.task.Count-start))
		if _, err := client.InsertManyFast(ctx, many); err != nil {
			return fmt.Errorf("cannot insert jobs from number %d on: %w", start, err)
		}
	}
	c.emit("result", fields{"count": c.task.Count})
	pool.Close()
	return nil
}

// Makes a call of one kind of insert after the other until the time is up. The call under way then is finished and
// counted.
func insert(ctx context.Context, c *child) error {
	call, ok := insertModes[c.task.Mode]
	if !ok {
		return unsupportedError{fmt.Sprintf("River has no way of inserting that would be %q", c.task.Mode)}
	}
	pool, client, err := inserter(ctx, c)
	if err != nil {
		return err
	}
	var (
		inserted = 0
		batch    = orDefault(c.task.Batch, defaultBatch)
		end      = time.Now().Add(seconds(c.task.Seconds))
	)
	for time.Now().Before(end) {
		count, err := call(ctx, pool, client, inserted, batch)
		if err != nil {
			return fmt.Errorf("cannot insert (%s) after %d jobs: %w", c.task.Mode, inserted, err)
		}
		inserted += count
	}
	c.emit("result", fields{"count": inserted})
	pool.Close()
	return nil
}

// One call of an insert; the number of jobs that it made, of which `number` is the first.
type insertCall func(
	ctx context.Context, pool *pgxpool.Pool, client *river.Client[pgx.Tx], number, batch int,
) (int, error)

var insertModes = map[string]insertCall{
	"single":    insertSingle,
	"single_tx": insertSingleTx,
	"batch":     insertBatch,
	"copy":      insertCopy,
}

func insertSingle(
	ctx context.Context, _ *pgxpool.Pool, client *river.Client[pgx.Tx], number, _ int,
) (int, error) {
	_, err := client.Insert(ctx, benchArgs{Number: int64(number)}, nil)
	return 1, err
}

// As an application does it: a row of its own and the job, both or neither.
func insertSingleTx(
	ctx context.Context, pool *pgxpool.Pool, client *river.Client[pgx.Tx], number, _ int,
) (int, error) {
	return 1, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO bench_app (number) VALUES ($1)", number); err != nil {
			return err
		}
		_, err := client.InsertTx(ctx, tx, benchArgs{Number: int64(number)}, nil)
		return err
	})
}

func insertBatch(
	ctx context.Context, _ *pgxpool.Pool, client *river.Client[pgx.Tx], number, batch int,
) (int, error) {
	_, err := client.InsertMany(ctx, numbered(number, batch))
	return batch, err
}

func insertCopy(
	ctx context.Context, _ *pgxpool.Pool, client *river.Client[pgx.Tx], number, batch int,
) (int, error) {
	return client.InsertManyFast(ctx, numbered(number, batch))
}

// A client that only inserts, once the harness has started the clock.
func inserter(ctx context.Context, c *child) (*pgxpool.Pool, *river.Client[pgx.Tx], error) {
	pool, err := newPool(ctx, &c.task)
	if err != nil {
		return nil, nil, err
	}
	client, err := newInserter(pool, &c.task)
	if err != nil {
		return nil, nil, err
	}
	return pool, client, c.awaitGo()
}

// The params of `count` jobs, numbered from `start`.
func numbered(start, count int) []river.InsertManyParams {
	many := make([]river.InsertManyParams, count)
	for i := range many {
		many[i].Args = benchArgs{Number: int64(start + i)}
	}
	return many
}

func seconds(amount float64) time.Duration { return time.Duration(amount * float64(time.Second)) }

func orDefault(value, fallback int) int {
	if value == 0 {
		return fallback
	}
	return value
}
