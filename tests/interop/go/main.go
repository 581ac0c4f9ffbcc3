// The oracle: a program of riverq's own that drives the real River, so that tests can compare the two.
//
// It reads one JSON request a line from standard input, {"id": 1, "op": "insert", ...}, and writes one JSON answer a line to
// standard output, {"id": 1, "result": ...} or {"id": 1, "error": "..."}. Requests run side by side; answers carry the id of
// their request. It ends at the end of its input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

type operation func(ctx context.Context, o *oracle, request json.RawMessage) (any, error)

var operations = map[string]operation{
	"migrate":         migrate,
	"versions":        versions,
	"shapes":          shapeNames,
	"cron":            cronRuns,
	"unique_keys":     uniqueKeys,
	"insert":          insertJobs,
	"rows":            readRows,
	"job_get":         jobGet,
	"job_list":        jobList,
	"cursor_check":    cursorCheck,
	"job_cancel":      jobCancel,
	"job_retry":       jobRetry,
	"job_delete":      jobDelete,
	"job_delete_many": jobDeleteMany,
	"job_update":      jobUpdate,
	"queue_get":       queueGet,
	"queue_list":      queueList,
	"queue_update":    queueUpdate,
	"queue_pause":     queuePause,
	"queue_resume":    queueResume,
	"request_resign":  requestResign,
	"tx_begin":        txBegin,
	"tx_end":          txEnd,
	"listen":          listen,
	"heard":           heard,
	"unlisten":        unlisten,
	"start":           startClient,
	"events":          awaitEvents,
	"marks":           awaitMarks,
	"release":         releaseJobs,
	"stop":            stopClient,
	"work":            work,
	"queue_add":       queueAdd,
	"queue_remove":    queueRemove,
	"periodic_add":    periodicAdd,
	"periodic_remove": periodicRemove,
	"leave":           leave,
	"close":           closePools,
}

type envelope struct {
	ID int64  `json:"id"`
	Op string `json:"op"`
}

type answer struct {
	ID        int64  `json:"id"`
	Result    any    `json:"result"`
	Error     string `json:"error,omitempty"`
	ErrorKind string `json:"error_kind,omitempty"`
}

func main() {
	var (
		o       = newOracle()
		input   = bufio.NewReaderSize(os.Stdin, 1<<20)
		encoder = json.NewEncoder(os.Stdout)
		write   sync.Mutex
		running sync.WaitGroup
	)
	encoder.SetEscapeHTML(false)
	for {
		line, err := input.ReadBytes('\n')
		if err != nil {
			break
		}
		var request envelope
		if err := json.Unmarshal(line, &request); err != nil {
			fmt.Fprintf(os.Stderr, "oracle: not a request: %v\n", err)
			continue
		}
		running.Add(1)
		go func() {
			defer running.Done()
			result, err := perform(o, request.Op, line)
			reply := answer{ID: request.ID, Result: result}
			if err != nil {
				reply = answer{ID: request.ID, Error: err.Error(), ErrorKind: kindOf(err)}
			}
			write.Lock()
			defer write.Unlock()
			if err := encoder.Encode(reply); err != nil {
				fmt.Fprintf(os.Stderr, "oracle: cannot answer: %v\n", err)
			}
		}()
	}
	o.end(func(place) bool { return true })
	running.Wait()
}

func perform(o *oracle, op string, request json.RawMessage) (result any, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("panic: %v", value)
		}
	}()
	run, ok := operations[op]
	if !ok {
		return nil, fmt.Errorf("unknown operation %q", op)
	}
	return run(context.Background(), o, request)
}
