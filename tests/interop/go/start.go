package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
)

type fixedRetry struct{ wait time.Duration }

func (p fixedRetry) NextRetry(*rivertype.JobRow) time.Time { return time.Now().UTC().Add(p.wait) }

// Leaves a mark for each error and panic that it is told of, and cancels the job where the test wants that.
type errorHandler struct {
	cancels bool
	marks   *tape
}

func (h *errorHandler) HandleError(_ context.Context, job *rivertype.JobRow, err error) *river.ErrorHandlerResult {
	return h.handle(job, "error_handled", err.Error())
}

func (h *errorHandler) HandlePanic(_ context.Context, job *rivertype.JobRow, value any, _ string) *river.ErrorHandlerResult {
	return h.handle(job, "panic_handled", fmt.Sprint(value))
}

func (h *errorHandler) handle(job *rivertype.JobRow, mark, detail string) *river.ErrorHandlerResult {
	h.marks.add(entry{"job_id": job.ID, "kind": job.Kind, "attempt": job.Attempt, "mark": mark, "detail": detail})
	return &river.ErrorHandlerResult{SetCancelled: h.cancels}
}

type retention struct {
	Cancelled float64 `json:"cancelled"`
	Completed float64 `json:"completed"`
	Discarded float64 `json:"discarded"`
}

type startRequest struct {
	place
	Client               string              `json:"client"` // the name by which later requests call it
	ID                   string              `json:"client_id"`
	Queue                string              `json:"queue"`
	MaxWorkers           int                 `json:"max_workers"`
	Queues               map[string]int      `json:"queues"` // instead of the two: a queue's name → its max_workers
	Kinds                []string            `json:"kinds"`
	Aliases              map[string][]string `json:"aliases"` // of those kinds
	Script               string              `json:"script"`  // which of their acts jobs and steps choose
	PollOnly             bool                `json:"poll_only"`
	NoLeader             bool                `json:"no_leader"`
	OnlyKnownKinds       bool                `json:"only_known_kinds"`
	CheckKinds           bool                `json:"check_kinds"` // when its jobs insert
	OnError              string              `json:"on_error"`    // cancel, or note: only leave a mark
	MaxAttempts          int                 `json:"max_attempts"`
	RetrySeconds         *float64            `json:"retry_seconds"`
	FetchPollSeconds     float64             `json:"fetch_poll_seconds"`
	FetchCooldownSeconds float64             `json:"fetch_cooldown_seconds"`
	SoftStopSeconds      float64             `json:"soft_stop_seconds"`
	RescueSeconds        float64             `json:"rescue_seconds"`
	JobTimeoutSeconds    float64             `json:"job_timeout_seconds"` // -1: none
	StuckSeconds         float64             `json:"stuck_seconds"`       // past its timeout; then a slot is added
	RetentionSeconds     retention           `json:"retention_seconds"`
	ReindexSeconds       float64             `json:"reindex_seconds"` // none: never
	Periodic             []periodicRequest   `json:"periodic"`
}

func (r *startRequest) config(w *worker, pool *pgxpool.Pool) (*river.Config, error) {
	workers := river.NewWorkers()
	for _, kind := range r.Kinds {
		river.AddWorkerArgs(workers, Outcome{kind: kind, aliases: r.Aliases[kind]}, &outcomeWorker{
			marks: w.marks, pool: pool, release: w.release, script: r.Script,
		})
	}
	config := &river.Config{
		CancelledJobRetentionPeriod: kept(r.RetentionSeconds.Cancelled),
		CompletedJobRetentionPeriod: kept(r.RetentionSeconds.Completed),
		DiscardedJobRetentionPeriod: kept(r.RetentionSeconds.Discarded),
		FetchCooldown:               seconds(r.FetchCooldownSeconds),
		FetchOnlyKnownKinds:         r.OnlyKnownKinds,
		FetchPollInterval:           seconds(r.FetchPollSeconds),
		ID:                          r.ID,
		JobTimeout:                  seconds(r.JobTimeoutSeconds),
		LeaderElectionDisabled:      r.NoLeader,
		Logger:                      logger(),
		MaxAttempts:                 r.MaxAttempts,
		PollOnly:                    r.PollOnly,
		Queues:                      r.queues(),
		ReindexerSchedule:           river.NeverSchedule(),
		Schema:                      r.Schema,
		SkipUnknownJobCheck:         !r.CheckKinds,
		SoftStopTimeout:             seconds(r.SoftStopSeconds),
		Workers:                     workers,
	}
	if r.JobTimeoutSeconds < 0 {
		config.JobTimeout = -1
	}
	if r.RetrySeconds != nil {
		config.RetryPolicy = fixedRetry{seconds(*r.RetrySeconds)}
	}
	if r.RescueSeconds > 0 {
		if r.JobTimeoutSeconds == 0 {
			config.JobTimeout = -1
		}
		config.RescueStuckJobsAfter = seconds(r.RescueSeconds)
	}
	if r.ReindexSeconds > 0 {
		config.ReindexerSchedule = river.PeriodicInterval(seconds(r.ReindexSeconds))
	}
	if r.OnError != "" {
		config.ErrorHandler = &errorHandler{cancels: r.OnError == "cancel", marks: w.marks}
	}
	if r.StuckSeconds > 0 {
		config.JobStuckThreshold = seconds(r.StuckSeconds)
		config.JobStuckHandler = func(_ context.Context, stuck river.JobStuckHandlerParams) river.JobStuckHandlerResult {
			w.marks.add(entry{"job_id": stuck.ID, "kind": stuck.Kind, "mark": "stuck", "detail": stuck.TotalStuckJobs})
			return river.JobStuckHandlerResult{AddWorkerSlot: true}
		}
	}
	for i := range r.Periodic {
		job, err := r.Periodic[i].job()
		if err != nil {
			return nil, err
		}
		config.PeriodicJobs = append(config.PeriodicJobs, job)
	}
	return config, nil
}

func (r *startRequest) queues() map[string]river.QueueConfig {
	if r.Queues == nil {
		return map[string]river.QueueConfig{
			orDefault(r.Queue, river.QueueDefault): {MaxWorkers: orDefault(r.MaxWorkers, 10)},
		}
	}
	queues := map[string]river.QueueConfig{}
	for name, maxWorkers := range r.Queues {
		queues[name] = river.QueueConfig{MaxWorkers: maxWorkers}
	}
	return queues
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
	w := &worker{
		place: request.place, release: make(chan struct{}), heard: make(chan struct{}), events: newTape(), marks: newTape(),
	}
	config, err := request.config(w, pool)
	if err != nil {
		return nil, err
	}
	w.client, err = river.NewClient(riverpgxv5.New(pool), config)
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
		o.forget(request.Client, w)
		return nil, err
	}
	return w.client.ID(), nil
}

// -1 keeps for ever, in River's own way of saying so.
func kept(forSeconds float64) time.Duration {
	if forSeconds < 0 {
		return -1
	}
	return seconds(forSeconds)
}
