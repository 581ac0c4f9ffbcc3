package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
)

// Where a request works: every operation on the database takes the first two; `tx` names a transaction of `tx_begin`.
type place struct {
	DatabaseURL string `json:"database_url"`
	Schema      string `json:"schema"`
	Tx          string `json:"tx"`
}

type oracle struct {
	mutex     sync.Mutex
	pools     map[string]*pgxpool.Pool
	clients   map[string]*worker
	txs       map[string]openTx
	listeners map[string]*listener
}

func newOracle() *oracle {
	return &oracle{
		pools: map[string]*pgxpool.Pool{}, clients: map[string]*worker{},
		txs: map[string]openTx{}, listeners: map[string]*listener{},
	}
}

func (o *oracle) pool(ctx context.Context, databaseURL string) (*pgxpool.Pool, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if pool, ok := o.pools[databaseURL]; ok {
		return pool, nil
	}
	config, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		return nil, err
	}
	config.MaxConns = 20
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	o.pools[databaseURL] = pool
	return pool, nil
}

// A client that inserts and reads, but works nothing.
func (o *oracle) client(ctx context.Context, at place) (*river.Client[pgx.Tx], error) {
	pool, err := o.pool(ctx, at.DatabaseURL)
	if err != nil {
		return nil, err
	}
	return river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: at.Schema, Logger: logger()})
}

// Reads a request into `into`, and gives the client for its place and the transaction it names, nil where it names none.
func (o *oracle) read(
	ctx context.Context, raw json.RawMessage, into interface{ at() place },
) (*river.Client[pgx.Tx], pgx.Tx, error) {
	if err := json.Unmarshal(raw, into); err != nil {
		return nil, nil, err
	}
	client, err := o.client(ctx, into.at())
	if err != nil {
		return nil, nil, err
	}
	tx, err := o.tx(into.at().Tx)
	return client, tx, err
}

func (p place) at() place { return p }

// What went wrong, in a word that a test may ask for without knowing River's texts; empty for everything else.
func kindOf(err error) string {
	var (
		noQueue *river.QueueNotFoundError
		refused *pgconn.PgError
	)
	switch {
	case errors.As(err, &refused) && refused.Code == "23505":
		return "conflict"
	case errors.As(err, &noQueue), errors.Is(err, rivertype.ErrNotFound):
		return "not_found"
	case errors.Is(err, rivertype.ErrJobRunning):
		return "running"
	}
	return ""
}

func logger() *slog.Logger {
	level := slog.LevelError + 4
	if os.Getenv("RIVERQ_ORACLE_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// Ends what a test has left in its schema: clients, transactions, listeners. Answers with how many of each were left.
func leave(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request place
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	return o.end(func(at place) bool { return at.DatabaseURL == request.DatabaseURL && at.Schema == request.Schema }), nil
}

func (o *oracle) end(which func(at place) bool) map[string]int {
	o.mutex.Lock()
	workers, txs, listeners := []*worker{}, []openTx{}, []*listener{}
	for name, each := range o.clients {
		if which(each.place) {
			workers = append(workers, each)
			delete(o.clients, name)
		}
	}
	for name, each := range o.txs {
		if which(each.place) {
			txs = append(txs, each)
			delete(o.txs, name)
		}
	}
	for name, each := range o.listeners {
		if which(each.place) {
			listeners = append(listeners, each)
			delete(o.listeners, name)
		}
	}
	o.mutex.Unlock()
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, each := range txs {
		_ = each.tx.Rollback(limited)
	}
	for _, each := range listeners {
		each.close()
	}
	var running sync.WaitGroup
	for _, each := range workers {
		running.Add(1)
		go func() {
			defer running.Done()
			each.letGo()
			_ = each.client.StopAndCancel(limited)
		}()
	}
	running.Wait()
	return map[string]int{"clients": len(workers), "transactions": len(txs), "listeners": len(listeners)}
}

// Closes the pools, so that a test may drop its database.
func closePools(_ context.Context, o *oracle, _ json.RawMessage) (any, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	for databaseURL, pool := range o.pools {
		pool.Close()
		delete(o.pools, databaseURL)
	}
	return nil, nil
}
