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

func rowsToJSON(all []*rivertype.JobRow) []map[string]any {
	rows := []map[string]any{}
	for _, row := range all {
		rows = append(rows, rowToJSON(row))
	}
	return rows
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
	return rowsToJSON(list.Jobs), nil
}
