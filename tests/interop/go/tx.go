package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
)

type openTx struct {
	place place
	tx    pgx.Tx
}

type txRequest struct {
	place
	Commit bool `json:"commit"`
}

// Opens a transaction under the name `tx`; every operation that takes `tx` then joins it, one at a time.
func txBegin(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request txRequest
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
	o.mutex.Lock()
	_, taken := o.txs[request.Tx]
	if !taken {
		o.txs[request.Tx] = openTx{place: request.place, tx: tx}
	}
	o.mutex.Unlock()
	if taken {
		_ = tx.Rollback(ctx)
		return nil, fmt.Errorf("a transaction named %q is open already", request.Tx)
	}
	return nil, nil
}

// Ends a transaction: commits it, or rolls it back.
func txEnd(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request txRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	tx, err := o.tx(request.Tx)
	if err != nil {
		return nil, err
	}
	o.mutex.Lock()
	delete(o.txs, request.Tx)
	o.mutex.Unlock()
	if request.Commit {
		return nil, tx.Commit(ctx)
	}
	return nil, tx.Rollback(ctx)
}

func (o *oracle) tx(name string) (pgx.Tx, error) {
	if name == "" {
		return nil, nil
	}
	o.mutex.Lock()
	defer o.mutex.Unlock()
	open, ok := o.txs[name]
	if !ok {
		return nil, fmt.Errorf("no transaction named %q is open", name)
	}
	return open.tx, nil
}
