package main

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
)

const (
	// River has no public sign that its fetching and listening have begun.
	settling = time.Second
	// How long jobs may take after the last insert.
	patience = 10 * time.Second
)

// When each job was inserted and when it began, by number.
type samples struct {
	mutex sync.Mutex
	seen  map[int64]bool
	rows  [][3]float64
	full  int
	all   chan struct{} // closed when all have run
}

func newSamples(full int) *samples {
	s := &samples{
		seen: make(map[int64]bool, full),
		rows: make([][3]float64, 0, full),
		full: full,
		all:  make(chan struct{}),
	}
	if full == 0 {
		close(s.all)
	}
	return s
}

// Keeps the first run of a job.
func (s *samples) add(args benchArgs, started float64) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.seen[args.Number] {
		return
	}
	s.seen[args.Number] = true
	s.rows = append(s.rows, [3]float64{float64(args.Number), args.At, started})
	if len(s.rows) == s.full {
		close(s.all)
	}
}

func (s *samples) taken() [][3]float64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return append([][3]float64{}, s.rows...)
}

// Inserts at a steady rate, whatever becomes of the jobs, and answers with when each was inserted and begun.
func latency(ctx context.Context, c *child) error {
	total := int(math.Round(c.task.Rate * c.task.Seconds))
	taken := newSamples(total)
	pool, err := newPool(ctx, &c.task)
	if err != nil {
		return err
	}
	client, err := newWorker(pool, &c.task, func(_ context.Context, job *river.Job[benchArgs]) error {
		taken.add(job.Args, unixNow())
		c.done()
		return nil
	})
	if err != nil {
		return err
	}
	if err := c.awaitGo(); err != nil {
		return err
	}
	if err := client.Start(ctx); err != nil {
		return err
	}
	time.Sleep(settling)
	if err := insertSteadily(ctx, client, total, &c.task); err != nil {
		return err
	}
	select {
	case <-taken.all:
	case <-time.After(patience):
	}
	if c.task.Samples != nil && !*c.task.Samples {
		c.emit("result", fields{"samples": [][3]float64{}})
	} else {
		c.emit("result", fields{"samples": taken.taken()})
	}
	if err := c.expect("stop"); err != nil {
		return err
	}
	return finish(ctx, c, client, pool)
}

// Inserts job i when i/rate seconds have passed, or `batch` jobs in one call where the task asks for it. A slow insert
// does not hold up the next: each has a goroutine of its own, and as many as the pool has connections run side by side.
func insertSteadily(ctx context.Context, client *river.Client[pgx.Tx], total int, t *task) error {
	var (
		inserting sync.WaitGroup
		failed    = make(chan error, total)
		start     = time.Now()
		batch     = max(t.Batch, 1)
	)
	for i := 0; i < total; i += batch {
		time.Sleep(time.Until(start.Add(seconds(float64(i) / t.Rate))))
		inserting.Go(func() {
			if err := insertFrom(ctx, client, i, min(batch, total-i)); err != nil {
				failed <- fmt.Errorf("cannot insert job %d: %w", i, err)
			}
		})
	}
	inserting.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func insertFrom(ctx context.Context, client *river.Client[pgx.Tx], first, count int) error {
	at := unixNow()
	if count == 1 {
		_, err := client.Insert(ctx, benchArgs{Number: int64(first), At: at}, nil)
		return err
	}
	params := make([]river.InsertManyParams, count)
	for i := range params {
		params[i] = river.InsertManyParams{Args: benchArgs{Number: int64(first + i), At: at}}
	}
	_, err := client.InsertMany(ctx, params)
	return err
}

func unixNow() float64 { return float64(time.Now().UnixNano()) / float64(time.Second) }
