package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A connection that listens to a schema's topics and keeps what it hears, byte for byte.
type listener struct {
	place  place
	cancel context.CancelFunc
	ended  chan struct{}
	heard  *tape
}

type listenRequest struct {
	place
	Name    string   `json:"name"`
	Topics  []string `json:"topics"`
	Count   int      `json:"count"`
	Seconds float64  `json:"seconds"`
}

// Begins to listen under a name; when this answers, everything committed from now on is heard.
func listen(ctx context.Context, o *oracle, raw json.RawMessage) (any, error) {
	var request listenRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	if request.Topics == nil {
		request.Topics = []string{"river_insert", "river_control", "river_leadership"}
	}
	conn, err := pgx.Connect(ctx, request.DatabaseURL)
	if err != nil {
		return nil, err
	}
	for _, topic := range request.Topics {
		channel := pgx.Identifier{request.Schema + "." + topic}.Sanitize()
		if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
			_ = conn.Close(ctx)
			return nil, err
		}
	}
	lasting, cancel := context.WithCancel(context.Background())
	l := &listener{place: request.place, cancel: cancel, ended: make(chan struct{}), heard: newTape()}
	go l.run(lasting, conn)
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if _, taken := o.listeners[request.Name]; taken {
		cancel()
		return nil, fmt.Errorf("a listener named %q listens already", request.Name)
	}
	o.listeners[request.Name] = l
	return nil, nil
}

func (l *listener) run(ctx context.Context, conn *pgx.Conn) {
	defer close(l.ended)
	defer conn.Close(context.Background()) //nolint:errcheck // it is gone either way
	for {
		notification, err := conn.WaitForNotification(ctx)
		if err != nil {
			return
		}
		l.heard.add(entry{
			"topic":   strings.TrimPrefix(notification.Channel, l.place.Schema+"."),
			"payload": notification.Payload,
		})
	}
}

func (l *listener) close() {
	l.cancel()
	<-l.ended
}

// Waits until so many notifications came since `listen`, and answers with all of them, in order.
func heard(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	request, l, err := o.listener(raw)
	if err != nil {
		return nil, err
	}
	limit := seconds(orDefault(request.Seconds, 20))
	all := l.heard.await(request.Count, limit, anyEntry)
	if len(all) < request.Count {
		return nil, fmt.Errorf("waited %s for %d notifications, heard only: %v", limit, request.Count, all)
	}
	return all, nil
}

// Ends a listener, and answers with all it heard.
func unlisten(_ context.Context, o *oracle, raw json.RawMessage) (any, error) {
	request, l, err := o.listener(raw)
	if err != nil {
		return nil, err
	}
	o.mutex.Lock()
	delete(o.listeners, request.Name)
	o.mutex.Unlock()
	l.close()
	return l.heard.await(0, time.Second, anyEntry), nil
}

func (o *oracle) listener(raw json.RawMessage) (*listenRequest, *listener, error) {
	var request listenRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return nil, nil, err
	}
	o.mutex.Lock()
	defer o.mutex.Unlock()
	l, ok := o.listeners[request.Name]
	if !ok {
		return nil, nil, fmt.Errorf("no listener named %q listens", request.Name)
	}
	return &request, l, nil
}
