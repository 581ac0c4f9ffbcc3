package main

import (
	"context"
	"encoding/json"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
)

type queueRequest struct {
	place
	Queue    string          `json:"queue"`
	Metadata json.RawMessage `json:"metadata"`
	Limit    int             `json:"limit"`
}

func queueToJSON(queue *rivertype.Queue) map[string]any {
	return map[string]any{
		"name":       queue.Name,
		"metadata":   string(queue.Metadata),
		"created_at": timeToJSON(&queue.CreatedAt),
		"paused_at":  timeToJSON(queue.PausedAt),
		"updated_at": timeToJSON(&queue.UpdatedAt),
	}
}

func queueGet(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request queueRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	var queue *rivertype.Queue
	if tx == nil {
		queue, err = client.QueueGet(ctx, request.Queue)
	} else {
		queue, err = client.QueueGetTx(ctx, tx, request.Queue)
	}
	if err != nil {
		return nil, err
	}
	return queueToJSON(queue), nil
}

func queueList(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request queueRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	params := river.NewQueueListParams()
	if request.Limit > 0 {
		params = params.First(request.Limit)
	}
	var list *river.QueueListResult
	if tx == nil {
		list, err = client.QueueList(ctx, params)
	} else {
		list, err = client.QueueListTx(ctx, tx, params)
	}
	if err != nil {
		return nil, err
	}
	queues := []map[string]any{}
	for _, queue := range list.Queues {
		queues = append(queues, queueToJSON(queue))
	}
	return queues, nil
}

// Replaces a queue's metadata by the JSON given; without any, only its time of update changes.
func queueUpdate(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request queueRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	params := &river.QueueUpdateParams{Metadata: request.Metadata}
	var queue *rivertype.Queue
	if tx == nil {
		queue, err = client.QueueUpdate(ctx, request.Queue, params)
	} else {
		queue, err = client.QueueUpdateTx(ctx, tx, request.Queue, params)
	}
	if err != nil {
		return nil, err
	}
	return queueToJSON(queue), nil
}

func queuePause(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request queueRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	if tx == nil {
		return nil, client.QueuePause(ctx, request.Queue, nil)
	}
	return nil, client.QueuePauseTx(ctx, tx, request.Queue, nil)
}

func queueResume(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request queueRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	if tx == nil {
		return nil, client.QueueResume(ctx, request.Queue, nil)
	}
	return nil, client.QueueResumeTx(ctx, tx, request.Queue, nil)
}

// Asks whoever leads to resign.
func requestResign(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request queueRequest
	client, tx, err := o.read(ctx, raw, &request)
	if err != nil {
		return nil, err
	}
	if tx == nil {
		return nil, client.Notify().RequestResign(ctx)
	}
	return nil, client.Notify().RequestResignTx(ctx, tx)
}
