package main

import (
	"context"
	"encoding/json"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

type migrateRequest struct {
	place
	Direction string `json:"direction"`
	Target    int    `json:"target"`
	MaxSteps  int    `json:"max_steps"`
}

func migrator(ctx context.Context, o *oracle, at place) (*rivermigrate.Migrator[pgx.Tx], error) {
	pool, err := o.pool(ctx, at.DatabaseURL)
	if err != nil {
		return nil, err
	}
	return rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: at.Schema, Logger: logger()})
}

// Moves the schema and answers with the versions that were applied or removed, in order.
func migrate(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request migrateRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	m, err := migrator(ctx, o, request.place)
	if err != nil {
		return nil, err
	}
	result, err := m.Migrate(ctx, rivermigrate.Direction(request.Direction), &rivermigrate.MigrateOpts{
		TargetVersion: request.Target,
		MaxSteps:      request.MaxSteps,
	})
	if err != nil {
		return nil, err
	}
	moved := []int{}
	for _, version := range result.Versions {
		moved = append(moved, version.Version)
	}
	return moved, nil
}

// All versions River knows, those the schema has, and what River's own validation says of it.
func versions(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request place
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	m, err := migrator(ctx, o, request)
	if err != nil {
		return nil, err
	}
	existing, err := m.ExistingVersions(ctx)
	if err != nil {
		return nil, err
	}
	validation, err := m.Validate(ctx, nil)
	if err != nil {
		return nil, err
	}
	numbers := func(migrations []rivermigrate.Migration) []int {
		found := []int{}
		for _, migration := range migrations {
			found = append(found, migration.Version)
		}
		return found
	}
	return map[string]any{
		"all":      numbers(m.AllVersions()),
		"existing": numbers(existing),
		"valid":    validation.OK,
		"messages": validation.Messages,
	}, nil
}
