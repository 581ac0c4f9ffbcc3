package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
)

// A client that works, and what it has told so far.
type worker struct {
	place   place
	client  *river.Client[pgx.Tx]
	release chan struct{}
	once    sync.Once
	heard   chan struct{} // closed when River has closed the subscription
	events  *tape         // River's own
	marks   *tape         // those of the jobs it works
}

func (w *worker) listen(events <-chan *river.Event) {
	defer close(w.heard)
	for event := range events {
		told := entry{"kind": string(event.Kind)}
		if event.Job != nil {
			told["job"] = rowToJSON(event.Job)
			told["job_id"] = event.Job.ID
		}
		if event.Queue != nil {
			told["queue"] = event.Queue.Name
		}
		w.events.add(told)
	}
}

func (w *worker) letGo() { w.once.Do(func() { close(w.release) }) }

type clientRequest struct {
	Client  string   `json:"client"`
	Count   int      `json:"count"`
	Seconds float64  `json:"seconds"`
	Cancel  bool     `json:"cancel"`
	Kinds   []string `json:"kinds"` // of events
	Mark    string   `json:"mark"`
	JobID   int64    `json:"job_id"`
}

func (r *clientRequest) await(from *tape, what string, fits func(entry) bool) ([]entry, error) {
	limit := seconds(orDefault(r.Seconds, 20))
	found := from.await(r.Count, limit, func(told entry) bool {
		return (r.JobID == 0 || told["job_id"] == r.JobID) && fits(told)
	})
	if len(found) < r.Count {
		return nil, fmt.Errorf("waited %s for %d %s, only %d came: %v", limit, r.Count, what, len(found), found)
	}
	return found, nil
}

// Waits for events of a running client and answers with all so far; with kinds or a job's id, only those count.
func awaitEvents(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	request, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	return request.await(w.events, "events", func(told entry) bool {
		return request.Kinds == nil || slices.Contains(request.Kinds, told["kind"].(string))
	})
}

// Waits for marks that jobs left, and answers with all so far; with a mark or a job's id, only those count.
func awaitMarks(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	request, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	return request.await(w.marks, "marks", func(told entry) bool {
		return request.Mark == "" || told["mark"] == request.Mark
	})
}

// Lets the jobs that hold or wait end, those too that begin later.
func releaseJobs(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	_, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	w.letGo()
	return nil, nil
}

// Stops a client, cancelling its jobs where that was asked for. Answers with all of its events.
func stopClient(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	request, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, seconds(orDefault(request.Seconds, 20)))
	defer cancel()
	stop := w.client.Stop
	if request.Cancel {
		stop = w.client.StopAndCancel
	}
	if err := stop(limited); err != nil {
		return nil, err
	}
	o.forget(request.Client, w)
	select {
	case <-w.heard:
	case <-limited.Done():
		return nil, errors.New("the client stopped, but left its subscription open")
	}
	return w.events.await(0, time.Second, anyEntry), nil
}

// Starts a client, waits for `count` events, stops it: the short way for a test that needs no more.
func work(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	if _, err := startClient(ctx, o, raw); err != nil {
		return nil, err
	}
	request, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	events, err := request.await(w.events, "events", anyEntry)
	if _, stopErr := stopClient(ctx, o, raw); err == nil {
		err = stopErr
	}
	return events, err
}

type queueChange struct {
	Queue      string `json:"queue"`
	MaxWorkers int    `json:"max_workers"`
}

// Gives a running client one more queue.
func queueAdd(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	_, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	var change queueChange
	if err := json.Unmarshal(raw, &change); err != nil {
		return nil, err
	}
	return nil, w.client.Queues().Add(change.Queue, river.QueueConfig{MaxWorkers: orDefault(change.MaxWorkers, 10)})
}

// Takes a queue from a running client, after its jobs there have ended.
func queueRemove(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	request, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	var change queueChange
	if err := json.Unmarshal(raw, &change); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, seconds(orDefault(request.Seconds, 20)))
	defer cancel()
	return nil, w.client.Queues().Remove(limited, change.Queue)
}

func (o *oracle) named(raw json.RawMessage) (*clientRequest, *worker, error) {
	var request clientRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, nil, err
	}
	o.mutex.Lock()
	defer o.mutex.Unlock()
	w, ok := o.clients[request.Client]
	if !ok {
		return nil, nil, fmt.Errorf("no client named %q runs", request.Client)
	}
	return &request, w, nil
}

func (o *oracle) forget(name string, w *worker) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if o.clients[name] == w {
		delete(o.clients, name)
	}
}

func seconds(amount float64) time.Duration { return time.Duration(amount * float64(time.Second)) }

func orDefault[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}
