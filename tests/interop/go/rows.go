package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
)

// A row as River's client reads it. Times are RFC 3339 in UTC; args and metadata are JSON text.
func rowToJSON(row *rivertype.JobRow) map[string]any {
	errs := []map[string]any{}
	for _, attempt := range row.Errors {
		errs = append(errs, map[string]any{
			"at": timeToJSON(&attempt.At), "attempt": attempt.Attempt, "error": attempt.Error, "trace": attempt.Trace,
		})
	}
	var uniqueKey any
	if row.UniqueKey != nil {
		uniqueKey = hex.EncodeToString(row.UniqueKey)
	}
	return map[string]any{
		"id":            row.ID,
		"state":         row.State,
		"attempt":       row.Attempt,
		"max_attempts":  row.MaxAttempts,
		"attempted_at":  timeToJSON(row.AttemptedAt),
		"attempted_by":  row.AttemptedBy,
		"created_at":    timeToJSON(&row.CreatedAt),
		"finalized_at":  timeToJSON(row.FinalizedAt),
		"scheduled_at":  timeToJSON(&row.ScheduledAt),
		"priority":      row.Priority,
		"args":          string(row.EncodedArgs),
		"errors":        errs,
		"kind":          row.Kind,
		"metadata":      string(row.Metadata),
		"queue":         row.Queue,
		"tags":          row.Tags,
		"unique_key":    uniqueKey,
		"unique_states": row.UniqueStates,
	}
}

func timeToJSON(at *time.Time) any {
	if at == nil {
		return nil
	}
	return at.UTC().Format(time.RFC3339Nano)
}

type idsRequest struct {
	place
	IDs []int64 `json:"ids"`
}

// The rows with these ids, or all of them (up to ten thousand), in the order of their ids.
func readRows(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request idsRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	client, err := o.client(ctx, request.place)
	if err != nil {
		return nil, err
	}
	params := river.NewJobListParams().First(10_000)
	if len(request.IDs) > 0 {
		params = params.IDs(request.IDs...)
	}
	list, err := client.JobList(ctx, params)
	if err != nil {
		return nil, err
	}
	rows := []map[string]any{}
	for _, row := range list.Jobs {
		rows = append(rows, rowToJSON(row))
	}
	return rows, nil
}

type jobIDRequest struct {
	place
	JobID int64 `json:"job_id"`
}

func jobCancel(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	return onJob(ctx, o, raw, func(client clientOps, id int64) (*rivertype.JobRow, error) { return client.JobCancel(ctx, id) })
}

func jobRetry(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	return onJob(ctx, o, raw, func(client clientOps, id int64) (*rivertype.JobRow, error) { return client.JobRetry(ctx, id) })
}

func jobDelete(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	return onJob(ctx, o, raw, func(client clientOps, id int64) (*rivertype.JobRow, error) { return client.JobDelete(ctx, id) })
}

type clientOps interface {
	JobCancel(ctx context.Context, id int64) (*rivertype.JobRow, error)
	JobRetry(ctx context.Context, id int64) (*rivertype.JobRow, error)
	JobDelete(ctx context.Context, id int64) (*rivertype.JobRow, error)
}

func onJob(
	ctx context.Context, o *oracle, raw json.RawMessage, act func(client clientOps, id int64) (*rivertype.JobRow, error),
) (any, error) {
	var request jobIDRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	client, err := o.client(ctx, request.place)
	if err != nil {
		return nil, err
	}
	row, err := act(client, request.JobID)
	if err != nil {
		return nil, err
	}
	return rowToJSON(row), nil
}

type queueRequest struct {
	place
	Queue string `json:"queue"`
}

func queuePause(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request queueRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	client, err := o.client(ctx, request.place)
	if err != nil {
		return nil, err
	}
	return nil, client.QueuePause(ctx, request.Queue, nil)
}

func queueResume(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request queueRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	client, err := o.client(ctx, request.place)
	if err != nil {
		return nil, err
	}
	return nil, client.QueueResume(ctx, request.Queue, nil)
}
