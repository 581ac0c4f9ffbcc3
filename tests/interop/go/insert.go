package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
)

type uniqueOptions struct {
	ByArgs      bool     `json:"by_args"`
	ByPeriod    float64  `json:"by_period"` // seconds
	ByQueue     bool     `json:"by_queue"`
	ByState     []string `json:"by_state"`
	ExcludeKind bool     `json:"exclude_kind"`
}

// A job to insert: a shape with the JSON of its values, or a kind with any JSON.
type jobRequest struct {
	Shape       string          `json:"shape"`
	Kind        string          `json:"kind"`
	Args        string          `json:"args"` // JSON text, so that numbers and key order arrive as they were written
	MaxAttempts int             `json:"max_attempts"`
	Metadata    json.RawMessage `json:"metadata"`
	Pending     bool            `json:"pending"`
	Priority    int             `json:"priority"`
	Queue       string          `json:"queue"`
	ScheduledAt time.Time       `json:"scheduled_at"`
	Tags        []string        `json:"tags"`
	Unique      uniqueOptions   `json:"unique"`
	Now         time.Time       `json:"now"` // for unique keys only
}

func (r *jobRequest) params() (river.InsertManyParams, error) {
	args, err := buildArgs(r.Shape, r.Kind, json.RawMessage(orDefault(r.Args, "{}")))
	if err != nil {
		return river.InsertManyParams{}, err
	}
	options := &river.InsertOpts{
		MaxAttempts: r.MaxAttempts,
		Metadata:    r.Metadata,
		Pending:     r.Pending,
		Priority:    r.Priority,
		Queue:       r.Queue,
		ScheduledAt: r.ScheduledAt,
		Tags:        r.Tags,
		UniqueOpts: river.UniqueOpts{
			ByArgs:      r.Unique.ByArgs,
			ByPeriod:    time.Duration(r.Unique.ByPeriod * float64(time.Second)),
			ByQueue:     r.Unique.ByQueue,
			ExcludeKind: r.Unique.ExcludeKind,
		},
	}
	for _, state := range r.Unique.ByState {
		options.UniqueOpts.ByState = append(options.UniqueOpts.ByState, rivertype.JobState(state))
	}
	return river.InsertManyParams{Args: args, InsertOpts: options}, nil
}

type insertRequest struct {
	place
	Jobs []jobRequest `json:"jobs"`
	Fast bool         `json:"fast"`
}

// Inserts all jobs in one transaction. Answers with their rows, or with a number when the fast path was asked for.
func insertJobs(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request insertRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	var many []river.InsertManyParams
	for i := range request.Jobs {
		params, err := request.Jobs[i].params()
		if err != nil {
			return nil, fmt.Errorf("job %d: %w", i, err)
		}
		many = append(many, params)
	}
	if request.Fast {
		if tx != nil {
			return client.InsertManyFastTx(ctx, tx, many)
		}
		return client.InsertManyFast(ctx, many)
	}
	var results []*rivertype.JobInsertResult
	if tx == nil {
		results, err = client.InsertMany(ctx, many)
	} else {
		results, err = client.InsertManyTx(ctx, tx, many)
	}
	if err != nil {
		return nil, err
	}
	inserted := []map[string]any{}
	for _, result := range results {
		inserted = append(inserted, map[string]any{
			"job":                         rowToJSON(result.Job),
			"unique_skipped_as_duplicate": result.UniqueSkippedAsDuplicate,
		})
	}
	return inserted, nil
}

// A clock that stands where the case wants it.
type stoppedClock struct{ at time.Time }

func (c *stoppedClock) Now() time.Time       { return c.at }
func (c *stoppedClock) NowOrNil() *time.Time { return &c.at }

// A link in River's insert chain that keeps what would be written and writes nothing.
type capture struct {
	river.MiddlewareDefaults

	params *rivertype.JobInsertParams
}

func (c *capture) InsertMany(
	_ context.Context, many []*rivertype.JobInsertParams, _ func(context.Context) ([]*rivertype.JobInsertResult, error),
) ([]*rivertype.JobInsertResult, error) {
	c.params = many[0]
	return []*rivertype.JobInsertResult{{Job: &rivertype.JobRow{}}}, nil
}

type uniqueKeysRequest struct {
	place
	Cases []jobRequest `json:"cases"`
}

// Answers, for each case, with the unique key River would write, the states' bits, and the args as River encodes them;
// or with the error River gives. Nothing is written.
func uniqueKeys(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request uniqueKeysRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	pool, err := o.pool(ctx, request.DatabaseURL)
	if err != nil {
		return nil, err
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // nothing was written

	clock, captured := &stoppedClock{}, &capture{}
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Logger:     logger(),
		Middleware: []rivertype.Middleware{captured},
		Schema:     request.Schema,
		Test:       river.TestConfig{Time: clock},
	})
	if err != nil {
		return nil, err
	}
	answers := []map[string]any{}
	for i := range request.Cases {
		answers = append(answers, uniqueKey(ctx, client, tx, &request.Cases[i], clock, captured))
	}
	return answers, nil
}

func uniqueKey(
	ctx context.Context, client *river.Client[pgx.Tx], tx pgx.Tx, request *jobRequest, clock *stoppedClock, captured *capture,
) map[string]any {
	params, err := request.params()
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	clock.at = request.Now
	if _, err := client.InsertTx(ctx, tx, params.Args, params.InsertOpts); err != nil {
		return map[string]any{"error": err.Error()}
	}
	answer := map[string]any{
		"args":          string(captured.params.EncodedArgs),
		"kind":          captured.params.Kind,
		"unique_key":    nil,
		"unique_states": nil,
	}
	if captured.params.UniqueKey != nil {
		answer["unique_key"] = hex.EncodeToString(captured.params.UniqueKey)
		answer["unique_states"] = fmt.Sprintf("%08b", captured.params.UniqueStates)
	}
	return answer
}
