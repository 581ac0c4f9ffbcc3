package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/robfig/cron/v3"
)

// One expression, and the first runs of it that are asked for: after a time, on a zone's clock.
type cronCase struct {
	Spec   string    `json:"spec"`
	Zone   string    `json:"zone"`
	After  time.Time `json:"after"`
	Number int       `json:"number"`
}

// The runs in UTC, in order, "never" where there are no more; null for an expression that is refused.
func cronRuns(_ context.Context, _ *oracle, request json.RawMessage) (any, error) {
	var asked struct {
		Cases []cronCase `json:"cases"`
	}
	if err := json.Unmarshal(request, &asked); err != nil {
		return nil, err
	}
	answers := make([][]string, len(asked.Cases))
	for index, each := range asked.Cases {
		zone, err := time.LoadLocation(each.Zone)
		if err != nil {
			return nil, err
		}
		schedule, err := parseCron(each.Spec)
		if err != nil {
			continue
		}
		answers[index] = runsOf(schedule, each.After.In(zone), each.Number)
	}
	return answers, nil
}

// ParseStandard panics at some expressions; to River's user that is a refusal too.
func parseCron(spec string) (schedule cron.Schedule, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("panic: %v", value)
		}
	}()
	return cron.ParseStandard(spec)
}

func runsOf(schedule cron.Schedule, at time.Time, number int) []string {
	runs := []string{}
	for ; number > 0; number-- {
		at = schedule.Next(at)
		if at.IsZero() {
			return append(runs, "never")
		}
		runs = append(runs, at.UTC().Format("2006-01-02T15:04:05Z"))
	}
	return runs
}
