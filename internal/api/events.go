package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/store"
)

// The change feed (X05). Events are numbered by the sequencer (internal/upkeep) and read here, by one goroutine for all streams of
// this server. A stream has no queue: it has a position, and goes through its feed's tail, or through the database when it is further
// behind. So a slow reader costs nobody memory.

const (
	pollEvery  = 50 * time.Millisecond
	checkEvery = 3 * time.Second // whether a stream's key is still in force
	tailLength = 4096            // events of a feed that are kept at hand
	eventPage  = 1000            // events that are read at once
)

// feedKey tells what a stream's key lets it see: its organisation's events, of the projects that the key is limited to.
type feedKey struct {
	org      uuid.UUID
	projects string
}

// feeds are the ones that somebody follows here.
type feeds struct {
	mu      sync.Mutex
	byKey   map[feedKey]*feed
	reading bool // there is a reader
}

// feed is the tail of a feed: all that its readers may see from behind the position from up to the position through.
type feed struct {
	readers map[*stream]bool // guarded by feeds.mu

	mu            sync.Mutex
	events        []api.Event
	from, through int64
	more          chan struct{} // closed when through has moved
}

// since is what the tail holds behind a position, and where it ends; ok is false when the tail begins later. more is closed when there
// is more.
func (f *feed) since(position int64) (events []api.Event, through int64, more <-chan struct{}, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	start, _ := slices.BinarySearchFunc(f.events, position+1, func(e api.Event, p int64) int { return int(e.Position - p) })
	// The tail is only ever replaced or appended to: who holds a part of it may read on.
	return f.events[start:len(f.events):len(f.events)], f.through, f.more, position >= f.from
}

func (f *feed) extend(events []api.Event, through int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, events...)
	if surplus := len(f.events) - tailLength; surplus > tailLength { // now and then, so that copying is cheap
		f.from = f.events[surplus-1].Position
		f.events = slices.Clone(f.events[surplus:])
	}
	f.through = through
	close(f.more)
	f.more = make(chan struct{})
}

// join adds a stream to its feed. The first one of all starts the reader.
func (s *Server) join(r *stream, key feedKey, head int64) *feed {
	s.feeds.mu.Lock()
	defer s.feeds.mu.Unlock()
	if s.feeds.byKey == nil {
		s.feeds.byKey = map[feedKey]*feed{}
	}
	f := s.feeds.byKey[key]
	if f == nil {
		f = &feed{readers: map[*stream]bool{}, from: head, through: head, more: make(chan struct{})}
		s.feeds.byKey[key] = f
		if !s.feeds.reading {
			s.feeds.reading = true
			go s.readFeeds()
		}
	}
	f.readers[r] = true
	return f
}

// leave takes a stream out of its feed, and the feed out with the last one.
func (s *Server) leave(r *stream, key feedKey) {
	s.feeds.mu.Lock()
	defer s.feeds.mu.Unlock()
	if f := s.feeds.byKey[key]; f != nil {
		delete(f.readers, r)
		if len(f.readers) == 0 {
			delete(s.feeds.byKey, key)
		}
	}
}

// readFeeds reads on in all feeds for as long as somebody follows one: one small question on behalf of nobody, and then, for the
// organisations where something has happened, their events, as one of those who follow them.
func (s *Server) readFeeds() {
	ctx := context.Background()
	for {
		s.feeds.mu.Lock()
		if len(s.feeds.byKey) == 0 {
			s.feeds.reading = false
			s.feeds.mu.Unlock()
			return
		}
		callers := make(map[*feed][]*store.Caller, len(s.feeds.byKey))
		byOrg := make(map[uuid.UUID][]*feed, len(s.feeds.byKey))
		for key, f := range s.feeds.byKey {
			byOrg[key.org] = append(byOrg[key.org], f)
			for r := range f.readers {
				callers[f] = append(callers[f], r.caller())
			}
		}
		s.feeds.mu.Unlock()

		asked, cancel := context.WithTimeout(ctx, s.RequestTimeout)
		orgs := make([]uuid.UUID, 0, len(byOrg))
		for org := range byOrg {
			orgs = append(orgs, org)
		}
		var heads []db.EventPositionsRow
		err := s.store.Nobody(asked, func(q *db.Queries) (err error) { heads, err = q.EventPositions(asked, orgs); return err })
		for _, head := range heads {
			for _, f := range byOrg[head.OrgID] {
				if head.LastPosition > f.through { // written by this goroutine alone
					err = s.readOn(asked, f, callers[f], head.LastPosition)
				}
			}
		}
		cancel()
		if err != nil {
			s.Log.Error("events: reading on", "cause", logged(err))
			time.Sleep(time.Second)
		}
		time.Sleep(pollEvery)
	}
}

// readOn reads a page of a feed behind its tail, as the first of the callers who still may.
func (s *Server) readOn(ctx context.Context, f *feed, callers []*store.Caller, head int64) (err error) {
	for _, caller := range callers {
		var rows []db.ListEventsRow
		if rows, err = s.db.ListEvents(store.WithCaller(ctx, caller), db.ListEventsParams{AfterPosition: f.through, RowLimit: eventPage}); err != nil {
			continue // its key was revoked, and its stream is about to notice
		}
		if n := len(rows); n == eventPage {
			head = rows[n-1].Position
		} else if n > 0 { // numbered since the head was asked for
			head = max(head, rows[n-1].Position)
		}
		f.extend(each(rows, event), head)
		return nil
	}
	return err
}

// FollowEvents implements the contract's operation.
func (s *Server) FollowEvents(ctx context.Context, r api.FollowEventsRequestObject) (api.FollowEventsResponseObject, error) {
	head, err := s.db.GetEventHead(ctx)
	if err != nil {
		return nil, err
	}
	stream := &stream{
		server: s, ctx: ctx, params: r.Params, head: head, position: head.LastPosition,
		key: feedKey{store.CallerFrom(ctx).OrgID, head.Projects}, identity: *store.CallerFrom(ctx),
	}
	after := r.Params.LastEventID
	if after == nil {
		after = r.Params.After
	}
	if after != nil {
		stream.position = *after
	}
	return stream, nil
}

// stream is one client that follows a feed, and the answer to it.
type stream struct {
	server   *Server
	ctx      context.Context //nolint:containedctx // the request's; who visits an answer is not given it
	identity store.Caller
	key      feedKey
	params   api.FollowEventsParams
	head     db.GetEventHeadRow // as the stream began

	position int64 // what the client has, or does not want to have
	out      http.ResponseWriter
	control  *http.ResponseController
}

// caller is who the stream acts as, for one statement.
func (r *stream) caller() *store.Caller {
	c := r.identity
	return &c
}

// VisitFollowEventsResponse sends the stream until it ends: nothing that happens then is an error that could still be told.
func (r *stream) VisitFollowEventsResponse(w http.ResponseWriter) error {
	feed := r.server.join(r, r.key, r.head.LastPosition)
	defer r.server.leave(r, r.key)
	r.out, r.control = w, http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would wait for more
	w.WriteHeader(http.StatusOK)

	hello := "retry: 1000\n"
	if r.position < r.head.PurgedPosition || r.position > r.head.LastPosition {
		r.position = r.head.LastPosition
		data, err := json.Marshal(api.EventReset{Position: r.position, Reread: r.reread()})
		if err != nil {
			return err
		}
		hello += fmt.Sprintf("event: reset\nid: %d\ndata: %s\n", r.position, data)
	} else {
		hello += fmt.Sprintf("id: %d\n", r.position)
	}
	if r.send([]byte(hello + "\n")) {
		r.follow(feed)
	}
	return nil
}

// reread names what a client has to read anew that missed events.
func (r *stream) reread() []string {
	switch {
	case r.params.SessionId != nil:
		path := sessionPath(*r.params.SessionId)
		return []string{path, path + "/messages", "/v1/detections?sessionId=" + r.params.SessionId.String()}
	case r.params.ProjectId != nil:
		id := r.params.ProjectId.String()
		return []string{"/v1/sessions?projectId=" + id, "/v1/projects/" + id + "/tasks", "/v1/projects/" + id + "/mappings", "/v1/detections?projectId=" + id}
	default:
		return []string{"/v1/sessions", "/v1/projects", "/v1/spokes", "/v1/detections"} // of each project its tasks and mappings
	}
}

// follow sends events until the client, the server or the key is gone.
func (r *stream) follow(feed *feed) {
	heartbeat := time.NewTicker(r.server.Heartbeat)
	defer heartbeat.Stop()
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	for {
		events, through, more, ok := feed.since(r.position)
		if !ok { // further back than the tail
			var err error
			if events, err = r.catchUp(); err != nil {
				return
			}
			if n := len(events); n == eventPage {
				through = events[n-1].Position
			} else if n > 0 { // that was all there is, and more than the feed's tail had when it was looked at
				through = max(through, events[n-1].Position)
			}
		}
		if text := r.render(events); len(text) > 0 && !r.send(text) {
			return
		}
		behind := !ok || len(events) > 0
		r.position = max(r.position, through)
		select {
		case <-r.ctx.Done():
			return
		case <-r.server.Stopping:
			return
		case <-check.C:
			if !r.inForce() {
				return
			}
			continue
		default:
		}
		if behind {
			continue
		}
		select {
		case <-r.ctx.Done():
			return
		case <-r.server.Stopping:
			return
		case <-more:
		case <-check.C:
			if !r.inForce() {
				return
			}
		case <-heartbeat.C:
			if !r.send(fmt.Appendf(nil, ": alive\nid: %d\n\n", r.position)) {
				return
			}
		}
	}
}

// catchUp reads a page of the feed from the database.
func (r *stream) catchUp() ([]api.Event, error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.server.RequestTimeout)
	defer cancel()
	rows, err := r.server.db.ListEvents(store.WithCaller(ctx, r.caller()), db.ListEventsParams{AfterPosition: r.position, RowLimit: eventPage})
	return each(rows, event), err
}

// inForce asks whether the key still is, and for the same projects. When the database does not answer, that is no reason to go.
func (r *stream) inForce() bool {
	ctx, cancel := context.WithTimeout(r.ctx, r.server.RequestTimeout)
	defer cancel()
	ctx = store.WithCaller(ctx, r.caller())
	head, err := r.server.db.GetEventHead(ctx)
	if err != nil {
		return asProblem((&http.Request{}).WithContext(r.ctx), err).Status >= http.StatusInternalServerError
	}
	return head.Projects == r.key.projects
}

// render is what the client is to see of the events.
func (r *stream) render(events []api.Event) []byte {
	var text bytes.Buffer
	for _, e := range events {
		if r.params.SessionId != nil && (e.SessionId == nil || *e.SessionId != *r.params.SessionId) ||
			r.params.ProjectId != nil && (e.ProjectId == nil || *e.ProjectId != *r.params.ProjectId) ||
			r.params.Kind != nil && !slices.Contains(*r.params.Kind, e.Kind) {
			continue
		}
		data, err := json.Marshal(e)
		if err != nil {
			panic(err) // ids and numbers
		}
		fmt.Fprintf(&text, "id: %d\ndata: %s\n\n", e.Position, data)
	}
	return text.Bytes()
}

// send writes to the client, who may not take too long to read it.
func (r *stream) send(text []byte) bool {
	if err := r.control.SetWriteDeadline(time.Now().Add(r.server.SlowReader)); err != nil {
		return false
	}
	if _, err := r.out.Write(text); err != nil {
		return false
	}
	return r.control.Flush() == nil
}

func event(row db.ListEventsRow) api.Event {
	return api.Event{
		Position: row.Position, Kind: api.EventKind(row.Kind), Action: api.EventAction(row.Action), Id: row.RowID, Revision: row.RowRevision,
		ProjectId: row.ProjectID, SessionId: row.SessionID, Offset: row.TextOffset, At: row.ChangedAt,
	}
}
