package main

import (
	"sync"
	"time"
)

type entry = map[string]any

// What was told so far, in order, for whoever waits for it.
type tape struct {
	mutex   sync.Mutex
	changed *sync.Cond
	entries []entry
}

func newTape() *tape {
	t := &tape{}
	t.changed = sync.NewCond(&t.mutex)
	return t
}

func (t *tape) add(told entry) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.entries = append(t.entries, told)
	t.changed.Broadcast()
}

// Waits until `count` entries fit, or until the limit. Gives all that fit by then.
func (t *tape) await(count int, limit time.Duration, fits func(entry) bool) []entry {
	late := false
	timer := time.AfterFunc(limit, func() {
		t.mutex.Lock()
		defer t.mutex.Unlock()
		late = true
		t.changed.Broadcast()
	})
	defer timer.Stop()
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for {
		found := []entry{}
		for _, each := range t.entries {
			if fits(each) {
				found = append(found, each)
			}
		}
		if len(found) >= count || late {
			return found
		}
		t.changed.Wait()
	}
}

func anyEntry(entry) bool { return true }
