package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
)

// Outcome is the args of jobs that say themselves how they shall end.
type Outcome struct {
	kind string

	Outcome string  `json:"outcome"` // complete, error, snooze, cancel, panic, hold, wait
	Message string  `json:"message,omitempty"`
	Seconds float64 `json:"seconds,omitempty"` // of a snooze
	Output  any     `json:"output,omitempty"`  // recorded before the end
}

func (o Outcome) Kind() string { return o.kind }

type outcomeWorker struct {
	river.WorkerDefaults[Outcome]

	release chan struct{}
}

func (w *outcomeWorker) Work(ctx context.Context, job *river.Job[Outcome]) error {
	if job.Args.Output != nil {
		if err := river.RecordOutput(ctx, job.Args.Output); err != nil {
			return err
		}
	}
	switch job.Args.Outcome {
	case "complete":
		return nil
	case "error":
		return errors.New(job.Args.Message)
	case "snooze":
		return river.JobSnooze(time.Duration(job.Args.Seconds * float64(time.Second)))
	case "cancel":
		return river.JobCancel(errors.New(job.Args.Message))
	case "panic":
		panic(job.Args.Message)
	case "hold": // until the test says "release"; blind to its context
		<-w.release
		return nil
	case "wait": // until its context ends, as a well-behaved long job
		select {
		case <-w.release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("unknown outcome %q", job.Args.Outcome)
}

type fixedRetry struct{ wait time.Duration }

func (p fixedRetry) NextRetry(*rivertype.JobRow) time.Time { return time.Now().UTC().Add(p.wait) }

// A client that works, and what it has told so far.
type worker struct {
	client  *river.Client[pgx.Tx]
	release chan struct{}
	once    sync.Once
	heard   chan struct{} // closed when River has closed the subscription

	mutex   sync.Mutex
	changed *sync.Cond
	events  []map[string]any
}

func (w *worker) listen(events <-chan *river.Event) {
	defer close(w.heard)
	for event := range events {
		told := map[string]any{"kind": event.Kind}
		if event.Job != nil {
			told["job"] = rowToJSON(event.Job)
		}
		if event.Queue != nil {
			told["queue"] = event.Queue.Name
		}
		w.mutex.Lock()
		w.events = append(w.events, told)
		w.changed.Broadcast()
		w.mutex.Unlock()
	}
}

// Waits until `count` events have come since the start of the client.
func (w *worker) await(count int, limit time.Duration) ([]map[string]any, error) {
	late := false
	timer := time.AfterFunc(limit, func() {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		late = true
		w.changed.Broadcast()
	})
	defer timer.Stop()
	w.mutex.Lock()
	defer w.mutex.Unlock()
	for len(w.events) < count && !late {
		w.changed.Wait()
	}
	if len(w.events) < count {
		return nil, fmt.Errorf("waited %s for %d events, only %d came: %v", limit, count, len(w.events), w.events)
	}
	return append([]map[string]any{}, w.events...), nil
}

type startRequest struct {
	place
	Client           string   `json:"client"` // the name by which later requests call it
	ID               string   `json:"client_id"`
	Queue            string   `json:"queue"`
	Kinds            []string `json:"kinds"`
	MaxWorkers       int      `json:"max_workers"`
	PollOnly         bool     `json:"poll_only"`
	NoLeader         bool     `json:"no_leader"`
	RetrySeconds     *float64 `json:"retry_seconds"`
	FetchPollSeconds float64  `json:"fetch_poll_seconds"`
	SoftStopSeconds  float64  `json:"soft_stop_seconds"`
	RescueSeconds    float64  `json:"rescue_seconds"`
}

func (r *startRequest) config(release chan struct{}) *river.Config {
	workers := river.NewWorkers()
	for _, kind := range r.Kinds {
		river.AddWorkerArgs(workers, Outcome{kind: kind}, &outcomeWorker{release: release})
	}
	config := &river.Config{
		ID:                     r.ID,
		LeaderElectionDisabled: r.NoLeader,
		Logger:                 logger(),
		PollOnly:               r.PollOnly,
		Queues:                 map[string]river.QueueConfig{orDefault(r.Queue, river.QueueDefault): {MaxWorkers: orDefault(r.MaxWorkers, 10)}},
		Schema:                 r.Schema,
		Workers:                workers,
	}
	if r.RetrySeconds != nil {
		config.RetryPolicy = fixedRetry{seconds(*r.RetrySeconds)}
	}
	if r.FetchPollSeconds > 0 {
		config.FetchPollInterval = seconds(r.FetchPollSeconds)
	}
	if r.SoftStopSeconds > 0 {
		config.SoftStopTimeout = seconds(r.SoftStopSeconds)
	}
	if r.RescueSeconds > 0 {
		config.JobTimeout = -1
		config.RescueStuckJobsAfter = seconds(r.RescueSeconds)
	}
	return config
}

// Starts a client that works in the background. Answers with its id.
func startClient(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request startRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	pool, err := o.pool(ctx, request.DatabaseURL)
	if err != nil {
		return nil, err
	}
	w := &worker{release: make(chan struct{}), heard: make(chan struct{})}
	w.changed = sync.NewCond(&w.mutex)
	w.client, err = river.NewClient(riverpgxv5.New(pool), request.config(w.release))
	if err != nil {
		return nil, err
	}
	events, _ := w.client.Subscribe(
		river.EventKindJobCancelled, river.EventKindJobCompleted, river.EventKindJobFailed, river.EventKindJobInterrupted,
		river.EventKindJobSnoozed, river.EventKindQueuePaused, river.EventKindQueueResumed,
	)
	go w.listen(events)

	o.mutex.Lock()
	_, taken := o.clients[request.Client]
	if !taken {
		o.clients[request.Client] = w
	}
	o.mutex.Unlock()
	if taken {
		return nil, fmt.Errorf("a client named %q runs already", request.Client)
	}
	if err := w.client.Start(ctx); err != nil {
		o.take(request.Client)
		return nil, err
	}
	return w.client.ID(), nil
}

type clientRequest struct {
	Client  string  `json:"client"`
	Count   int     `json:"count"`
	Seconds float64 `json:"seconds"`
	Cancel  bool    `json:"cancel"`
}

// Waits for events of a running client and answers with all of them so far.
func awaitEvents(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	request, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	return w.await(request.Count, seconds(orDefault(request.Seconds, 20)))
}

// Lets the jobs that hold or wait end.
func releaseJobs(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	_, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	w.once.Do(func() { close(w.release) })
	return nil, nil
}

// Stops a client, cancelling its jobs where that was asked for. Answers with all of its events.
func stopClient(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	request, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	o.take(request.Client)
	limited, cancel := context.WithTimeout(ctx, seconds(orDefault(request.Seconds, 20)))
	defer cancel()
	stop := w.client.Stop
	if request.Cancel {
		stop = w.client.StopAndCancel
	}
	if err := stop(limited); err != nil {
		return nil, err
	}
	select {
	case <-w.heard:
	case <-limited.Done():
		return nil, errors.New("the client stopped, but left its subscription open")
	}
	return w.await(0, time.Second)
}

// Starts a client, waits for `count` events, stops it: the short way for a test that needs no more.
func work(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	if _, err := startClient(ctx, o, raw); err != nil {
		return nil, err
	}
	events, err := awaitEvents(ctx, o, raw)
	if _, stopErr := stopClient(ctx, o, raw); err == nil {
		err = stopErr
	}
	return events, err
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

func (o *oracle) take(name string) *worker {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	w := o.clients[name]
	delete(o.clients, name)
	return w
}

func (o *oracle) stopAll() {
	o.mutex.Lock()
	left := o.clients
	o.clients = map[string]*worker{}
	o.mutex.Unlock()
	for _, w := range left {
		limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_ = w.client.StopAndCancel(limited)
		cancel()
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
