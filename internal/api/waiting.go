package api

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/db"
)

// waiters are requests that wait for something in the database: a spoke for calls, a caller for its call's end. What this server does
// itself wakes them at once; for what others do, one look for all of them, every lookEvery, for as long as there are any.
type waiters struct {
	mu      sync.Mutex
	waiting map[uuid.UUID]*waited // by spoke or call
	looking bool
}

type waited struct {
	org   uuid.UUID
	bells map[chan struct{}]struct{}
}

const lookEvery = 100 * time.Millisecond

// wait returns a bell that rings when there may be something for a spoke, or a call may be over; done takes it away.
func (s *Server) wait(org, id uuid.UUID) (bell <-chan struct{}, done func()) {
	w := &s.waiters
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = map[uuid.UUID]*waited{}
	}
	on := w.waiting[id]
	if on == nil {
		on = &waited{org: org, bells: map[chan struct{}]struct{}{}}
		w.waiting[id] = on
	}
	mine := make(chan struct{}, 1)
	on.bells[mine] = struct{}{}
	if !w.looking {
		w.looking = true
		go s.look()
	}
	return mine, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(on.bells, mine)
		if len(on.bells) == 0 && w.waiting[id] == on {
			delete(w.waiting, id)
		}
	}
}

func (w *waiters) wake(id uuid.UUID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	on := w.waiting[id]
	if on == nil {
		return
	}
	for bell := range on.bells {
		select {
		case bell <- struct{}{}:
		default: // it rings already
		}
	}
}

// look looks for all who wait, until nobody does.
func (s *Server) look() {
	w := &s.waiters
	for {
		time.Sleep(lookEvery)
		var params db.FindWorkParams
		w.mu.Lock()
		for id, on := range w.waiting {
			params.OrgIds, params.Ids = append(params.OrgIds, on.org), append(params.Ids, id)
		}
		w.looking = len(params.Ids) > 0
		w.mu.Unlock()
		if len(params.Ids) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := s.store.Nobody(ctx, func(q *db.Queries) error {
			found, err := q.FindWork(ctx, params)
			for _, id := range found {
				w.wake(id)
			}
			return err
		})
		cancel()
		if err != nil {
			s.Log.Warn("looking for what requests wait for", slog.String("cause", logged(err)))
			time.Sleep(time.Second)
		}
	}
}

// patience is for how long a request may wait: as long as it asked to, less than it may take, and not at all in a transaction, whose
// changes nobody sees before it ends.
func patience(ctx context.Context, seconds int32) time.Time {
	until := time.Now().Add(time.Duration(seconds) * time.Second)
	if deadline, ok := ctx.Deadline(); ok && deadline.Add(-time.Second).Before(until) {
		until = deadline.Add(-time.Second)
	}
	return until
}

// rings waits for the bell; false when it is time to answer.
func (s *Server) rings(ctx context.Context, bell <-chan struct{}, until time.Time) bool {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-bell:
		return true
	case <-timer.C:
	case <-ctx.Done():
	case <-s.Stopping:
	}
	return false
}
