package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
)

type jobIDRequest struct {
	place
	JobID int64 `json:"job_id"`
}

// One verb of River's, outside of a transaction and in one.
type jobVerb struct {
	plain func(*river.Client[pgx.Tx], context.Context, int64) (*rivertype.JobRow, error)
	inTx  func(*river.Client[pgx.Tx], context.Context, pgx.Tx, int64) (*rivertype.JobRow, error)
}

var (
	jobGet    = jobVerb{(*river.Client[pgx.Tx]).JobGet, (*river.Client[pgx.Tx]).JobGetTx}.perform
	jobCancel = jobVerb{(*river.Client[pgx.Tx]).JobCancel, (*river.Client[pgx.Tx]).JobCancelTx}.perform
	jobRetry  = jobVerb{(*river.Client[pgx.Tx]).JobRetry, (*river.Client[pgx.Tx]).JobRetryTx}.perform
	jobDelete = jobVerb{(*river.Client[pgx.Tx]).JobDelete, (*river.Client[pgx.Tx]).JobDeleteTx}.perform
)

func (v jobVerb) perform(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request jobIDRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	var row *rivertype.JobRow
	if tx == nil {
		row, err = v.plain(client, ctx, request.JobID)
	} else {
		row, err = v.inTx(client, ctx, tx, request.JobID)
	}
	if err != nil {
		return nil, err
	}
	return rowToJSON(row), nil
}

type jobUpdateRequest struct {
	place
	JobID  int64           `json:"job_id"`
	Output json.RawMessage `json:"output"`
}

// Replaces a job's output by any JSON; without `output`, an update that changes nothing.
func jobUpdate(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request jobUpdateRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	params := &river.JobUpdateParams{}
	if request.Output != nil {
		params.Output = request.Output
	}
	var row *rivertype.JobRow
	if tx == nil {
		row, err = client.JobUpdate(ctx, request.JobID, params)
	} else {
		row, err = client.JobUpdateTx(ctx, tx, request.JobID, params)
	}
	if err != nil {
		return nil, err
	}
	return rowToJSON(row), nil
}

// What jobs to read or to delete. What is not given does not filter.
type jobFilter struct {
	IDs        []int64  `json:"ids"`
	Kinds      []string `json:"kinds"`
	Priorities []int16  `json:"priorities"`
	Queues     []string `json:"queues"`
	States     []string `json:"states"`
	Limit      int      `json:"limit"`
}

func (f *jobFilter) states() []rivertype.JobState {
	states := []rivertype.JobState{}
	for _, state := range f.States {
		states = append(states, rivertype.JobState(state))
	}
	return states
}

type jobDeleteManyRequest struct {
	place
	jobFilter
	UnsafeAll bool `json:"unsafe_all"`
}

// Deletes what matches and answers with its rows.
func jobDeleteMany(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request jobDeleteManyRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	params := river.NewJobDeleteManyParams()
	if request.IDs != nil {
		params = params.IDs(request.IDs...)
	}
	if request.Kinds != nil {
		params = params.Kinds(request.Kinds...)
	}
	if request.Priorities != nil {
		params = params.Priorities(request.Priorities...)
	}
	if request.Queues != nil {
		params = params.Queues(request.Queues...)
	}
	if request.States != nil {
		params = params.States(request.states()...)
	}
	if request.Limit > 0 {
		params = params.First(request.Limit)
	}
	if request.UnsafeAll {
		params = params.UnsafeAll()
	}
	var result *river.JobDeleteManyResult
	if tx == nil {
		result, err = client.JobDeleteMany(ctx, params)
	} else {
		result, err = client.JobDeleteManyTx(ctx, tx, params)
	}
	if err != nil {
		return nil, err
	}
	return rowsToJSON(result.Jobs), nil
}

type jobListRequest struct {
	place
	jobFilter
	TagsAll    []string       `json:"tags_all"`
	TagsAny    []string       `json:"tags_any"`
	Metadata   string         `json:"metadata"` // JSON text that the job's must contain
	OrderBy    string         `json:"order_by"` // id, finalized_at, scheduled_at, time
	Descending bool           `json:"descending"`
	After      string         `json:"after"`     // a cursor's text
	AfterJob   int64          `json:"after_job"` // the id of a job to make the cursor from
	Where      string         `json:"where"`
	WhereArgs  map[string]any `json:"where_args"`
}

// A page of jobs and the text of the cursor behind its last one, null for an empty page.
func jobList(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request jobListRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	params, err := request.params(ctx, client)
	if err != nil {
		return nil, err
	}
	var list *river.JobListResult
	if tx == nil {
		list, err = client.JobList(ctx, params)
	} else {
		list, err = client.JobListTx(ctx, tx, params)
	}
	if err != nil {
		return nil, err
	}
	answer := map[string]any{"jobs": rowsToJSON(list.Jobs), "cursor": nil}
	if list.LastCursor != nil {
		text, err := list.LastCursor.MarshalText()
		if err != nil {
			return nil, err
		}
		answer["cursor"] = string(text)
	}
	return answer, nil
}

func (r *jobListRequest) params(ctx context.Context, client *river.Client[pgx.Tx]) (*river.JobListParams, error) {
	params := river.NewJobListParams()
	if r.IDs != nil {
		params = params.IDs(r.IDs...)
	}
	if r.Kinds != nil {
		params = params.Kinds(r.Kinds...)
	}
	if r.Priorities != nil {
		params = params.Priorities(r.Priorities...)
	}
	if r.Queues != nil {
		params = params.Queues(r.Queues...)
	}
	if r.States != nil {
		params = params.States(r.states()...)
	}
	if r.TagsAll != nil {
		params = params.TagsAll(r.TagsAll...)
	}
	if r.TagsAny != nil {
		params = params.TagsAny(r.TagsAny...)
	}
	if r.Metadata != "" {
		params = params.Metadata(r.Metadata)
	}
	if r.Where != "" {
		params = params.Where(r.Where, river.NamedArgs(r.WhereArgs))
	}
	if r.Limit > 0 {
		params = params.First(r.Limit)
	}
	if r.OrderBy != "" {
		order := river.SortOrderAsc
		if r.Descending {
			order = river.SortOrderDesc
		}
		params = params.OrderBy(river.JobListOrderByField(r.OrderBy), order)
	}
	if r.AfterJob != 0 {
		row, err := client.JobGet(ctx, r.AfterJob)
		if err != nil {
			return nil, err
		}
		params = params.After(river.JobListCursorFromJob(row))
	}
	if r.After != "" {
		cursor, err := readCursor(r.After)
		if err != nil {
			return nil, err
		}
		params = params.After(cursor)
	}
	return params, nil
}

func readCursor(text string) (*river.JobListCursor, error) {
	cursor := &river.JobListCursor{}
	if err := cursor.UnmarshalText([]byte(text)); err != nil {
		return nil, fmt.Errorf("not a cursor: %w", err)
	}
	return cursor, nil
}

// Whether River reads this text as a cursor; its refusal is the answer's error. Nothing is asked of the database.
func cursorCheck(_ context.Context, _ *oracle, raw json.RawMessage) (any, error) {
	var request struct {
		After string `json:"after"`
	}
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	_, err := readCursor(request.After)
	return err == nil, err
}
