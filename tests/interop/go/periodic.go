package main

import (
	"context"
	"encoding/json"

	"github.com/riverqueue/river"
)

// A job to insert whenever its schedule says: `seconds` apart, by a cron expression, or with neither never.
type periodicRequest struct {
	ID         string     `json:"id"`
	Seconds    float64    `json:"seconds"`
	Cron       string     `json:"cron"`
	RunOnStart bool       `json:"run_on_start"`
	Job        jobRequest `json:"job"`
}

func (r *periodicRequest) job() (*river.PeriodicJob, error) {
	schedule := river.NeverSchedule()
	if r.Seconds > 0 {
		schedule = river.PeriodicInterval(seconds(r.Seconds))
	}
	if r.Cron != "" {
		parsed, err := parseCron(r.Cron)
		if err != nil {
			return nil, err
		}
		schedule = parsed
	}
	if _, err := r.Job.params(); err != nil {
		return nil, err
	}
	build := func() (river.JobArgs, *river.InsertOpts) {
		params, err := r.Job.params()
		if err != nil {
			return nil, nil
		}
		return params.Args, params.InsertOpts
	}
	return river.NewPeriodicJob(schedule, build, &river.PeriodicJobOpts{ID: r.ID, RunOnStart: r.RunOnStart}), nil
}

type periodicChange struct {
	Periodic periodicRequest `json:"periodic"`
	ID       string          `json:"periodic_id"`
}

// Gives a running client one more periodic job.
func periodicAdd(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	_, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	var change periodicChange
	if err := json.Unmarshal(raw, &change); err != nil {
		return nil, err
	}
	job, err := change.Periodic.job()
	if err != nil {
		return nil, err
	}
	_, err = w.client.PeriodicJobs().AddSafely(job)
	return nil, err
}

// Takes a periodic job from a running client by its id; answers whether it was there.
func periodicRemove(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	_, w, err := o.named(raw)
	if err != nil {
		return nil, err
	}
	var change periodicChange
	if err := json.Unmarshal(raw, &change); err != nil {
		return nil, err
	}
	return w.client.PeriodicJobs().RemoveByID(change.ID), nil
}
