package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// Where a request works: every operation on the database takes these two.
type place struct {
	DatabaseURL string `json:"database_url"`
	Schema      string `json:"schema"`
}

type oracle struct {
	mutex   sync.Mutex
	pools   map[string]*pgxpool.Pool
	clients map[string]*worker
}

func newOracle() *oracle {
	return &oracle{pools: map[string]*pgxpool.Pool{}, clients: map[string]*worker{}}
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
	config.MaxConns = 8
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

func logger() *slog.Logger {
	level := slog.LevelError + 4
	if os.Getenv("RIVERQ_ORACLE_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
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
