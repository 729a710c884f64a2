package opencode

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/alkdev/hub/internal/pgjson"
)

// Scan reads a whole export, checks all of it, and returns its outline. It stops at the first fault, without reading on, with an
// *[Error]; other errors are the reader's. info may stand before or after messages.
func Scan(r io.Reader) (*Session, error) {
	f := newFile(r)
	f.agents = map[string]struct{}{}
	f.messageIDs = map[idHash]struct{}{}
	f.partIDs = map[idHash]struct{}{}
	if err := f.read(); err != nil {
		return nil, err
	}
	f.session.Agents = slices.Sorted(maps.Keys(f.agents))
	return &f.session, nil
}

// Messages reads the export again from which Scan made s, and yields its messages in the order of the file. An error ends it; there
// is none for a file that Scan has accepted, but the reader's.
func Messages(r io.Reader, s *Session) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		stopped := errors.New("stopped")
		f := newFile(r)
		f.sessionID.id = s.SourceID
		f.sessionID.first = &Error{Pointer: "/info/id", Message: "is not the session that was scanned"}
		f.yield = func(m Message) error {
			if !yield(m, nil) {
				return stopped
			}
			return nil
		}
		if err := f.read(); err != nil && !errors.Is(err, stopped) {
			yield(Message{}, err)
		}
	}
}

// file is one pass over an export.
type file struct {
	s         *pgjson.Scanner
	session   Session
	sessionID sharedID
	extra     []byte // the unknown members at the top, joined by commas
	message   message

	// In the first pass.
	agents              map[string]struct{}
	messageIDs, partIDs map[idHash]struct{}

	// In the second pass.
	yield       func(Message) error
	sameInstant map[int64]int // messages so far, by their time
}

// idHash stands for an id, which may be longer.
type idHash [16]byte

// message is what was read of a message. Its spans hold until the next one is read.
type message struct {
	id        sharedID
	position  int
	role      string
	created   int64
	data      []pgjson.Span // members
	extra     []pgjson.Span // members beside info and parts
	extraSize int64         // in bytes
	parts     []part
	partData  []pgjson.Span // members of all parts
}

type part struct {
	id, kind string
	from, to int // its members in partData
}

// sharedID is an id that the file defines at one place and mentions at others, before or after it.
type sharedID struct {
	id    string
	first *Error // the first mention's fault, should the definition turn out to be different
}

func (id *sharedID) define(value string) error {
	if id.first != nil && id.id != value {
		return id.first
	}
	*id = sharedID{id: value}
	return nil
}

func (id *sharedID) mention(value string, fault func() *Error) error {
	switch {
	case id.id == "":
		*id = sharedID{id: value, first: fault()}
	case id.id != value:
		return fault()
	}
	return nil
}

func newFile(r io.Reader) *file {
	return &file{s: pgjson.NewScanner(r), sameInstant: map[int64]int{}}
}

func (f *file) read() error {
	var info, messages bool
	span, err := f.s.Object(func(name pgjson.Name) (err error) {
		switch string(name.Text) {
		case "info":
			info = true
			err = f.readInfo()
		case "messages":
			messages = true
			_, err = f.s.Array(f.readMessage)
		default:
			err = f.readExtra(name)
		}
		f.s.Release()
		return err
	})
	if err != nil {
		return err
	}
	if err := f.require(span, field{"info", info}, field{"messages", messages}); err != nil {
		return err
	}
	version := f.session.Metadata.JSON
	f.session.Metadata.JSON = metadata(version, f.extra)
	return f.s.End()
}

// readExtra keeps an unknown member of the top. Its bytes are copied, since they may be far from those of the others.
func (f *file) readExtra(name pgjson.Name) error {
	f.s.Root()
	value, err := f.s.Value()
	if err != nil {
		return err
	}
	if f.extra != nil {
		f.extra = append(f.extra, ',')
	}
	f.extra = append(f.extra, f.s.Bytes(name.Through(value))...)
	return f.checkExtra(name, int64(len(f.extra)))
}

func (f *file) checkExtra(name pgjson.Name, size int64) error {
	if size > maxExtra {
		return f.s.Fault(name.Start, fmt.Sprintf("is beyond the %d bytes of unknown members that can be kept", maxExtra))
	}
	return nil
}

// readInfo reads the session's info. The version's literal is left in Metadata.
func (f *file) readInfo() error {
	var (
		s       = &f.session
		t       times
		data    []pgjson.Span
		title   bool
		version []byte
		parent  pgjson.Span
	)
	f.s.Root()
	span, err := f.s.Object(func(name pgjson.Name) error {
		var v pgjson.Span
		var err error
		switch string(name.Text) {
		case "id":
			if s.SourceID, _, err = f.readID(); err == nil {
				err = f.sessionID.define(s.SourceID)
			}
			return err
		case "version":
			if v, err = f.readString(); err == nil {
				version = f.s.AppendEscaped(nil, v)
			}
			return err
		case "parentID":
			if v, err = f.readNull(); v.Kind == 0 && err == nil {
				var id string
				id, parent, err = f.readID()
				s.ParentSourceID = &id
				return err
			}
		case "title":
			title = true
			if v, err = f.readString(); err == nil {
				s.Title = columnTitle(f.s.Bytes(v))
			}
		case "agent":
			s.Agent, v, err = f.readAgent()
		case "time":
			t, v, err = f.readTimes(true)
		default:
			v, err = f.s.Value()
		}
		data = append(data, name.Through(v))
		return err
	})
	if err != nil {
		return err
	}
	err = f.require(span, field{"id", s.SourceID != ""}, field{"title", title}, field{"version", version != nil}, field{"time", t.read})
	if err != nil {
		return err
	}
	if s.ParentSourceID != nil && *s.ParentSourceID == s.SourceID {
		return f.s.Fault(parent.Start, "must not be the session itself", "parentID")
	}
	s.ID = sessionID(s.SourceID, t.created)
	s.Created, s.Updated = instant(t.created), instant(t.updated)
	if t.archived >= 0 {
		at := instant(t.archived)
		s.Archived = &at
	}
	s.Data = f.text(data)
	s.Metadata.JSON = version
	return nil
}

// readMessage reads the message of the given index.
func (f *file) readMessage(index int) error {
	f.s.Release()
	m := &f.message
	*m = message{position: index, data: m.data[:0], extra: m.extra[:0], parts: m.parts[:0], partData: m.partData[:0]}
	var info, parts bool
	span, err := f.s.Object(func(name pgjson.Name) (err error) {
		switch string(name.Text) {
		case "info":
			info = true
			err = f.readMessageInfo()
		case "parts":
			parts = true
			_, err = f.s.Array(f.readPart)
		default:
			var v pgjson.Span
			f.s.Root()
			if v, err = f.s.Value(); err == nil {
				m.extra = append(m.extra, name.Through(v))
				m.extraSize += v.End - name.Start
				err = f.checkExtra(name, m.extraSize)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := f.require(span, field{"info", info}, field{"parts", parts}); err != nil {
		return err
	}
	f.session.Messages++
	f.session.Parts += len(m.parts)
	if f.yield == nil {
		return nil
	}
	return f.yield(f.build())
}

func (f *file) readMessageInfo() error {
	m := &f.message
	var t times
	var session bool
	f.s.Root()
	span, err := f.s.Object(func(name pgjson.Name) error {
		var v pgjson.Span
		var err error
		switch string(name.Text) {
		case "id":
			var id string
			if id, v, err = f.readID(); err != nil {
				return err
			}
			if err := f.unique(f.messageIDs, id, v, "is the id of an earlier message too"); err != nil {
				return err
			}
			return m.id.define(id)
		case "sessionID":
			session = true
			return f.readMention(&f.sessionID, "must be the session's id")
		case "role":
			if v, err = f.readString(); err != nil {
				return err
			}
			if m.role = pgjson.Clean(f.s.Bytes(v)); !isRole(m.role) {
				return f.s.Fault(v.Start, "must be user, assistant or system")
			}
			return nil
		case "agent":
			_, v, err = f.readAgent()
		case "time":
			t, v, err = f.readTimes(false)
		default:
			v, err = f.s.Value()
		}
		m.data = append(m.data, name.Through(v))
		return err
	})
	if err != nil {
		return err
	}
	m.created = t.created
	return f.require(span, field{"id", m.id.id != "" && m.id.first == nil}, field{"sessionID", session}, field{"role", m.role != ""},
		field{"time", t.read})
}

// readPart reads the next part of the message.
func (f *file) readPart(int) error {
	m := &f.message
	p := part{from: len(m.partData)}
	var session, message bool
	f.s.Root()
	span, err := f.s.Object(func(name pgjson.Name) error {
		var v pgjson.Span
		var err error
		switch string(name.Text) {
		case "id":
			if p.id, v, err = f.readID(); err != nil {
				return err
			}
			return f.unique(f.partIDs, p.id, v, "is the id of an earlier part too")
		case "sessionID":
			session = true
			return f.readMention(&f.sessionID, "must be the session's id")
		case "messageID":
			message = true
			return f.readMention(&m.id, "must be the message's id")
		case "type":
			p.kind, _, err = f.readID()
			return err
		default:
			v, err = f.s.Value()
		}
		m.partData = append(m.partData, name.Through(v))
		return err
	})
	if err != nil {
		return err
	}
	p.to = len(m.partData)
	m.parts = append(m.parts, p)
	return f.require(span, field{"id", p.id != ""}, field{"sessionID", session}, field{"messageID", message}, field{"type", p.kind != ""})
}

// build makes a Message of what was read.
func (f *file) build() Message {
	m := &f.message
	order := f.sameInstant[m.created]
	f.sameInstant[m.created]++
	built := Message{
		ID:       messageID(m.id.id, m.created, order),
		SourceID: m.id.id,
		Position: int32(m.position),
		Role:     m.role,
		Created:  instant(m.created),
		Data:     f.text(m.data),
		Metadata: pgjson.Text{JSON: metadata(nil, f.join(m.extra))},
		Parts:    make([]Part, len(m.parts)),
	}
	for i, p := range m.parts {
		built.Parts[i] = Part{
			ID:       partID(p.id, m.created, order, i),
			SourceID: p.id,
			Position: int32(i),
			Type:     p.kind,
			Data:     f.text(m.partData[p.from:p.to]),
			Metadata: pgjson.Text{JSON: metadata(nil, nil)},
		}
	}
	return built
}

// text makes an object of members, for storing.
func (f *file) text(members []pgjson.Span) pgjson.Text {
	size := len("{}")
	for _, m := range members {
		size += int(m.End-m.Start) + len(",")
	}
	text := pgjson.Text{JSON: append(make([]byte, 0, size), '{')}
	for i, m := range members {
		if i > 0 {
			text.JSON = append(text.JSON, ',')
		}
		text.JSON = f.s.AppendEscaped(text.JSON, m)
		text.Respelled = text.Respelled || m.Respelled()
	}
	text.JSON = append(text.JSON, '}')
	return text
}

// join returns members as they stand in the file, with commas between.
func (f *file) join(members []pgjson.Span) []byte {
	var text []byte
	for i, m := range members {
		if i > 0 {
			text = append(text, ',')
		}
		text = append(text, f.s.Bytes(m)...)
	}
	return text
}

// metadata returns what the hub keeps of an export beside Data: a version, a string literal for jsonb, and extra members. Those
// become one string, which has to be neither escaped nor stored twice, whatever strings and numbers are in it.
func metadata(version, extra []byte) []byte {
	if version == nil && len(extra) == 0 {
		return []byte("{}")
	}
	text := []byte(`{"_opencode":{`)
	if version != nil {
		text = append(text, `"version":`...)
		text = append(text, version...)
	}
	if len(extra) > 0 {
		if version != nil {
			text = append(text, ',')
		}
		text = append(text, `"extra":`...)
		text, _ = jsontext.AppendQuote(text, slices.Concat([]byte("{"), extra, []byte("}"))) // it fails for invalid UTF-8 only
	}
	return append(text, "}}"...)
}

// field is a field that must be there, and whether it was.
type field struct {
	name string
	read bool
}

func (f *file) require(object pgjson.Span, fields ...field) error {
	for _, field := range fields {
		if !field.read {
			return f.s.Fault(object.Start, "is missing", field.name)
		}
	}
	return nil
}

// unique checks that an id is not in the set yet, and puts it there. The second pass has no sets.
func (f *file) unique(set map[idHash]struct{}, id string, at pgjson.Span, fault string) error {
	if set == nil {
		return nil
	}
	sum := sha256.Sum256([]byte(id))
	hash := idHash(sum[:])
	if _, met := set[hash]; met {
		return f.s.Fault(at.Start, fault)
	}
	set[hash] = struct{}{}
	return nil
}

// readMention reads a mention of an id.
func (f *file) readMention(id *sharedID, fault string) error {
	value, at, err := f.readID()
	if err != nil {
		return err
	}
	return id.mention(value, func() *Error { return f.s.Fault(at.Start, fault) })
}

// readNull reads a null if there is one; otherwise it reads nothing and the span is zero.
func (f *file) readNull() (pgjson.Span, error) {
	if c, err := f.s.Peek(); err != nil || c != 'n' {
		return pgjson.Span{}, err
	}
	return f.s.Value()
}

func (f *file) readString() (pgjson.Span, error) {
	c, err := f.s.Peek()
	if err != nil {
		return pgjson.Span{}, err
	}
	if c != '"' {
		return pgjson.Span{}, f.s.Fault(f.s.Offset(), "must be a string")
	}
	return f.s.Value()
}

// readText reads a string that a text column can hold, of a bounded length.
func (f *file) readText() (string, pgjson.Span, error) {
	v, err := f.readString()
	if err != nil {
		return "", v, err
	}
	if v.Unstorable() {
		return "", v, f.s.Fault(v.Start, "must not hold U+0000 or half of a surrogate pair")
	}
	text := pgjson.Clean(f.s.Bytes(v))
	if len(text) > MaxIDLength {
		return "", v, f.s.Fault(v.Start, fmt.Sprintf("must not be longer than %d bytes", MaxIDLength))
	}
	return text, v, nil
}

func (f *file) readID() (string, pgjson.Span, error) {
	id, v, err := f.readText()
	if err == nil && id == "" {
		err = f.s.Fault(v.Start, "must not be empty")
	}
	return id, v, err
}

// readAgent reads the name of an agent. Null and the empty string name none.
func (f *file) readAgent() (*string, pgjson.Span, error) {
	if v, err := f.readNull(); v.Kind != 0 || err != nil {
		return nil, v, err
	}
	name, v, err := f.readText()
	if err != nil || name == "" {
		return nil, v, err
	}
	if f.agents != nil {
		f.agents[name] = struct{}{}
	}
	return &name, v, nil
}

// times are in milliseconds since 1970; -1 is none.
type times struct {
	created, updated, archived int64
	read                       bool
}

// readTimes reads the times of a session or of a message, of which only created matters.
func (f *file) readTimes(session bool) (times, pgjson.Span, error) {
	t := times{created: -1, updated: -1, archived: -1, read: true}
	span, err := f.s.Object(func(name pgjson.Name) error {
		wanted := (*int64)(nil)
		switch string(name.Text) {
		case "created":
			wanted = &t.created
		case "updated":
			wanted = &t.updated
		case "archived":
			if v, err := f.readNull(); v.Kind != 0 || err != nil {
				return err
			}
			wanted = &t.archived
		}
		if wanted == nil || !session && wanted != &t.created {
			_, err := f.s.Value()
			return err
		}
		return f.readMillis(wanted)
	})
	if err != nil {
		return t, span, err
	}
	return t, span, f.require(span, field{"created", t.created >= 0}, field{"updated", t.updated >= 0 || !session})
}

func (f *file) readMillis(millis *int64) error {
	c, err := f.s.Peek()
	if err != nil {
		return err
	}
	if c != '-' && (c < '0' || c > '9') {
		return f.s.Fault(f.s.Offset(), "must be a number")
	}
	v, err := f.s.Value()
	if err != nil {
		return err
	}
	var ok bool
	if *millis, ok = parseMillis(f.s.Bytes(v)); !ok {
		return f.s.Fault(v.Start, "must be a time in milliseconds since 1970, before the year 10000")
	}
	return nil
}

func instant(millis int64) time.Time { return time.UnixMilli(millis).UTC() }
