package main

import (
	"context"
	"encoding/json"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// Step is one resumable step of a job. What it does depends on the script of the client that runs it; without an act for that
// script it succeeds.
type Step struct {
	Name   string             `json:"name"`
	Cursor bool               `json:"cursor,omitempty"` // a step with a cursor
	Acts   map[string]StepAct `json:"acts,omitempty"`
}

// StepAct is an act that may set the step's cursor before, in a transaction or not.
type StepAct struct {
	Act

	SetCursor json.RawMessage `json:"set_cursor,omitempty"`
	Tx        string          `json:"tx,omitempty"` // "commit" or "rollback": set the step, or its cursor, in a transaction
}

// Every step that is entered leaves the mark "step" with its name, one with a cursor also the cursor it was given.
func (w *outcomeWorker) runSteps(ctx context.Context, job *river.Job[Outcome]) {
	for i := range job.Args.Steps {
		step := &job.Args.Steps[i]
		if !step.Cursor {
			river.ResumableStep(ctx, step.Name, nil, func(ctx context.Context) error {
				w.mark(job, "step", entry{"name": step.Name})
				return w.performStep(ctx, job, step)
			})
			continue
		}
		river.ResumableStepCursor(ctx, step.Name, nil, func(ctx context.Context, cursor json.RawMessage) error {
			w.mark(job, "step", entry{"name": step.Name, "cursor": cursor})
			return w.performStep(ctx, job, step)
		})
	}
}

func (w *outcomeWorker) performStep(ctx context.Context, job *river.Job[Outcome], step *Step) error {
	act, ok := step.Acts[w.script]
	if !ok {
		return nil
	}
	if act.Tx != "" {
		if err := w.setStepTx(ctx, job, &act); err != nil {
			return err
		}
	} else if act.SetCursor != nil {
		if err := river.ResumableSetCursor(ctx, act.SetCursor); err != nil {
			return err
		}
	}
	return w.perform(ctx, job, &act.Act)
}

func (w *outcomeWorker) setStepTx(ctx context.Context, job *river.Job[Outcome], act *StepAct) error {
	tx, err := w.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // nothing to do after a commit
	if act.SetCursor != nil {
		_, err = river.ResumableSetStepCursorTx[*riverpgxv5.Driver](ctx, tx, job, act.SetCursor)
	} else {
		_, err = river.ResumableSetStepTx[*riverpgxv5.Driver](ctx, tx, job)
	}
	if err != nil || act.Tx != "commit" {
		return err
	}
	return tx.Commit(ctx)
}
