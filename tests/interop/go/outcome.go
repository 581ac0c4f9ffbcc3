package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// Act is one thing that a job may do, and how it ends.
type Act struct {
	Outcome  string          `json:"outcome,omitempty"`
	Message  string          `json:"message,omitempty"`
	Seconds  float64         `json:"seconds,omitempty"`  // of a snooze or a sleep
	Output   json.RawMessage `json:"output,omitempty"`   // recorded before the end
	Metadata map[string]any  `json:"metadata,omitempty"` // set before the end, key by key
	Insert   *jobRequest     `json:"insert,omitempty"`   // inserted before the end, by the client that works the job
}

// Outcome is the args of jobs that say themselves how they shall end.
type Outcome struct {
	kind    string
	aliases []string

	Act
	Acts  map[string]Act `json:"acts,omitempty"` // instead, by the script of the client that works the job
	Steps []Step         `json:"steps,omitempty"`
}

func (o Outcome) Kind() string          { return o.kind }
func (o Outcome) KindAliases() []string { return o.aliases }

type outcomeWorker struct {
	river.WorkerDefaults[Outcome]

	marks   *tape
	pool    *pgxpool.Pool
	release chan struct{}
	script  string
}

func (w *outcomeWorker) Work(ctx context.Context, job *river.Job[Outcome]) error {
	w.mark(job, "began", nil)
	defer w.mark(job, "ended", nil)
	act, ok := job.Args.Acts[w.script]
	if !ok {
		act = job.Args.Act
	}
	w.runSteps(ctx, job)
	return w.perform(ctx, job, &act)
}

func (w *outcomeWorker) mark(job *river.Job[Outcome], mark string, detail any) {
	w.marks.add(entry{"job_id": job.ID, "kind": job.Kind, "attempt": job.Attempt, "mark": mark, "detail": detail})
}

func (w *outcomeWorker) perform(ctx context.Context, job *river.Job[Outcome], act *Act) error {
	if act.Output != nil {
		if err := river.RecordOutput(ctx, act.Output); err != nil {
			return err
		}
	}
	for key, value := range act.Metadata {
		if err := river.MetadataSet(ctx, key, value); err != nil {
			return err
		}
	}
	if act.Insert != nil {
		params, err := act.Insert.params()
		if err != nil {
			return err
		}
		if _, err := river.ClientFromContext[pgx.Tx](ctx).Insert(ctx, params.Args, params.InsertOpts); err != nil {
			return err
		}
	}
	return w.end(ctx, job, act)
}

func (w *outcomeWorker) end(ctx context.Context, job *river.Job[Outcome], act *Act) error {
	switch act.Outcome {
	case "complete", "":
		return nil
	case "error":
		return errors.New(act.Message)
	case "snooze":
		return river.JobSnooze(seconds(act.Seconds))
	case "cancel":
		return river.JobCancel(errors.New(act.Message))
	case "panic":
		panic(act.Message)
	case "sleep": // so long, unless its context ends
		select {
		case <-time.After(seconds(act.Seconds)):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	case "hold": // until the test says "release"; blind to its context
		<-w.release
		return nil
	case "wait": // until its context ends, as a well-behaved long job
		select {
		case <-w.release:
			return nil
		case <-ctx.Done():
			w.mark(job, "cancelled", context.Cause(ctx).Error())
			return ctx.Err()
		}
	case "finish": // as wait, but when its context ends it has reached its end nevertheless
		select {
		case <-w.release:
		case <-ctx.Done():
			w.mark(job, "cancelled", context.Cause(ctx).Error())
		}
		return nil
	case "complete_tx":
		return w.completeTx(ctx, job, act, true)
	case "complete_tx_rollback":
		return w.completeTx(ctx, job, act, false)
	}
	return fmt.Errorf("unknown outcome %q", act.Outcome)
}

// Completes the job in a transaction that also inserts a pending job of kind side_effect. With a message, the worker fails
// after the transaction.
func (w *outcomeWorker) completeTx(ctx context.Context, job *river.Job[Outcome], act *Act, commit bool) error {
	tx, err := w.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // nothing to do after a commit
	client := river.ClientFromContext[pgx.Tx](ctx)
	effect := Raw{kind: "side_effect", args: json.RawMessage("{}")}
	if _, err := client.InsertTx(ctx, tx, effect, &river.InsertOpts{Pending: true}); err != nil {
		return err
	}
	if _, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job); err != nil {
		return err
	}
	if commit {
		if err := tx.Commit(ctx); err != nil {
			return err
		}
	}
	if act.Message != "" {
		return errors.New(act.Message)
	}
	return nil
}
