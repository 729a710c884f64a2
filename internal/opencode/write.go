package opencode

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/alkdev/hub/internal/pgjson"
)

// SessionRecord is a stored session. Its Data and Metadata are as PostgreSQL prints them, escaped by pgjson: the json column if
// there is one, otherwise jsonb.
type SessionRecord struct {
	ID                       uuid.UUID
	SourceID, ParentSourceID *string    // nil for what was born in the hub
	ParentID                 *uuid.UUID // counts when ParentSourceID is nil
	ProjectID                uuid.UUID
	Slug, Title              string
	RoleName                 *string // the agent of what was born in the hub and names none
	ArchivedAt               *time.Time
	CreatedAt, UpdatedAt     time.Time
	Data, Metadata           []byte
}

// MessageRecord is a stored message with its parts, in order.
type MessageRecord struct {
	ID             uuid.UUID
	SourceID       *string
	Role           string
	CreatedAt      time.Time
	Data, Metadata []byte
	Parts          []PartRecord
}

// PartRecord is a stored part.
type PartRecord struct {
	ID       uuid.UUID
	SourceID *string
	Type     string
	Data     []byte
}

// Writer writes one export: Session, then Message for each message in order, then Close. It writes as it goes; after an error what
// was written is no export.
//
// An imported row gives back every value that came in, but for what the hub has changed since: the title, when it is no longer
// what Scan made of Data's, the session's agent, and whether and when it was archived. A row that was born in the hub gets an id of ses_,
// msg_ or prt_ with the hex digits of its UUID, and the fields that opencode requires and Data lacks. Scan accepts what a Writer
// wrote: a column replaces a field of Data that Scan would refuse.
type Writer struct {
	enc      *jsontext.Encoder
	id       string // the session's, once it is written
	roleName *string
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{enc: jsontext.NewEncoder(w,
		jsontext.WithIndent("  "),
		// Names were checked when they came in, and strings, lone surrogates too, leave as they came.
		jsontext.AllowDuplicateNames(true),
		jsontext.AllowInvalidUTF8(true),
		jsontext.PreserveRawStrings(true),
	)}
}

// Session begins the export.
func (w *Writer) Session(r SessionRecord) error {
	if w.id != "" {
		return errors.New("opencode: the session is written already")
	}
	data, err := parseObject(pgjson.Unescape(r.Data))
	if err != nil {
		return fmt.Errorf("data of session %s: %w", r.ID, err)
	}
	born := r.SourceID == nil
	own := parseMetadata(r.Metadata, "info", "messages")
	w.id = exportID("ses_", r.SourceID, r.ID)
	w.roleName = r.RoleName

	data.drop("id")
	if title := data.get("title"); title.kind != '"' || columnTitle(title.value) != r.Title {
		data.set("title", quote(r.Title))
	}
	switch {
	case r.ParentSourceID != nil:
		data.set("parentID", quote(*r.ParentSourceID))
	case r.ParentID != nil:
		data.set("parentID", quote(hubID("ses_", *r.ParentID)))
	case data.get("parentID").kind != 'n':
		data.drop("parentID")
	}
	switch {
	case own.version != nil:
		data.set("version", own.version)
	case data.get("version").kind != '"':
		data.set("version", quote("hub"))
	}
	t := parseTimes(data.get("time"))
	t.fill("created", r.CreatedAt)
	t.fill("updated", r.UpdatedAt)
	t.archive(r.ArchivedAt)
	data.set("time", t.text())
	w.setAgent(&data, born)
	if agent := data.get("agent"); !born && r.RoleName != nil && agent.kind == '"' && pgjson.Clean(agent.value) != *r.RoleName && isText(quote(*r.RoleName)) {
		data.set("agent", quote(*r.RoleName)) // the role was changed in the hub
	}
	if born {
		data.fill("slug", quote(r.Slug))
		data.fill("projectID", quote(r.ProjectID.String()))
		data.fill("directory", quote(""))
	}

	out := encoder{enc: w.enc}
	out.token(jsontext.BeginObject)
	out.token(jsontext.String("info"))
	out.object(object{{name: "id", value: quote(w.id)}}, data)
	out.members(own.extra)
	out.token(jsontext.String("messages"))
	out.token(jsontext.BeginArray)
	return out.err
}

// Message writes the next message.
func (w *Writer) Message(r MessageRecord) error {
	if w.id == "" {
		return errors.New("opencode: a message before the session")
	}
	data, err := parseObject(pgjson.Unescape(r.Data))
	if err != nil {
		return fmt.Errorf("data of message %s: %w", r.ID, err)
	}
	id := exportID("msg_", r.SourceID, r.ID)
	data.drop("id", "sessionID", "role")
	t := parseTimes(data.get("time"))
	t.fill("created", r.CreatedAt)
	data.set("time", t.text())
	w.setAgent(&data, r.SourceID == nil)

	out := encoder{enc: w.enc}
	out.token(jsontext.BeginObject)
	out.token(jsontext.String("info"))
	out.object(object{
		{name: "id", value: quote(id)},
		{name: "sessionID", value: quote(w.id)},
		{name: "role", value: quote(r.Role)},
	}, data)
	out.members(parseMetadata(r.Metadata, "info", "parts").extra)
	out.token(jsontext.String("parts"))
	out.token(jsontext.BeginArray)
	for _, p := range r.Parts {
		data, err := parseObject(pgjson.Unescape(p.Data))
		if err != nil {
			return fmt.Errorf("data of part %s: %w", p.ID, err)
		}
		data.drop("id", "sessionID", "messageID", "type")
		out.object(object{
			{name: "id", value: quote(exportID("prt_", p.SourceID, p.ID))},
			{name: "sessionID", value: quote(w.id)},
			{name: "messageID", value: quote(id)},
			{name: "type", value: quote(p.Type)},
		}, data)
	}
	out.token(jsontext.EndArray)
	out.token(jsontext.EndObject)
	return out.err
}

// Close ends the export. It does not close the underlying writer.
func (w *Writer) Close() error {
	if w.id == "" {
		return errors.New("opencode: an export without its session")
	}
	out := encoder{enc: w.enc}
	out.token(jsontext.EndArray)
	out.token(jsontext.EndObject)
	return out.err
}

// setAgent drops an agent that Scan would refuse, and gives one to what was born in the hub without.
func (w *Writer) setAgent(data *object, born bool) {
	agent := data.get("agent")
	if !(agent.kind == 0 || agent.kind == 'n' || agent.kind == '"' && isText(agent.value)) {
		data.drop("agent")
	}
	if born && w.roleName != nil && isText(quote(*w.roleName)) {
		data.fill("agent", quote(*w.roleName))
	}
}

func exportID(prefix string, sourceID *string, id uuid.UUID) string {
	if sourceID != nil {
		return *sourceID
	}
	return hubID(prefix, id)
}

// encoder remembers its first error.
type encoder struct {
	enc *jsontext.Encoder
	err error
}

func (e *encoder) token(t jsontext.Token) {
	if e.err == nil {
		e.err = e.enc.WriteToken(t)
	}
}

func (e *encoder) value(v jsontext.Value) {
	if e.err == nil {
		e.err = e.enc.WriteValue(v)
	}
}

// object writes one object of the members of all objects.
func (e *encoder) object(objects ...object) {
	e.token(jsontext.BeginObject)
	for _, o := range objects {
		e.members(o)
	}
	e.token(jsontext.EndObject)
}

func (e *encoder) members(o object) {
	for _, m := range o {
		e.value(m.literalName())
		e.value(m.value)
	}
}

// object is a JSON object by its members, in order.
type object []member

type member struct {
	name    string         // as pgjson.Name has it
	literal jsontext.Value // the name as it was spelled; nil for one that was set here
	value   jsontext.Value
	kind    byte // of the value, as pgjson.Span has it; 0 for a member that is not there
}

func (m member) literalName() jsontext.Value {
	if m.literal != nil {
		return m.literal
	}
	return quote(m.name)
}

// parseObject reads an object. No text at all is an empty one.
func parseObject(text []byte) (object, error) {
	if len(text) == 0 {
		return nil, nil
	}
	s := pgjson.NewBytesScanner(text)
	var o object
	_, err := s.Object(func(name pgjson.Name) error {
		m := member{name: string(name.Text), literal: s.Bytes(name.Span)}
		s.Root()
		v, err := s.Value()
		if err == nil {
			m.value, m.kind = s.Bytes(v), v.Kind
			o = append(o, m)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, s.End()
}

func (o object) get(name string) member {
	for _, m := range o {
		if m.name == name {
			return m
		}
	}
	return member{}
}

// set replaces a member's value, or appends the member.
func (o *object) set(name string, value jsontext.Value) {
	for i := range *o {
		if m := &(*o)[i]; m.name == name {
			m.value, m.kind = value, byte(value.Kind())
			return
		}
	}
	*o = append(*o, member{name: name, value: value, kind: byte(value.Kind())})
}

// fill appends a member unless it is there.
func (o *object) fill(name string, value jsontext.Value) {
	if o.get(name).kind == 0 {
		o.set(name, value)
	}
}

func (o *object) drop(names ...string) {
	kept := (*o)[:0]
	for _, m := range *o {
		dropped := false
		for _, name := range names {
			dropped = dropped || m.name == name
		}
		if !dropped {
			kept = append(kept, m)
		}
	}
	*o = kept
}

func (o object) text() jsontext.Value {
	text := jsontext.Value{'{'}
	for i, m := range o {
		if i > 0 {
			text = append(text, ',')
		}
		text = append(text, m.literalName()...)
		text = append(text, ':')
		text = append(text, m.value...)
	}
	return append(text, '}')
}

// timesObject is the time object of a session or message.
type timesObject struct{ object }

// parseTimes reads a time object; what is none counts as an empty one.
func parseTimes(m member) timesObject {
	if m.kind != '{' {
		return timesObject{}
	}
	o, _ := parseObject(m.value) // checked as part of Data
	return timesObject{o}
}

// millis returns a time that Scan would accept.
func (t timesObject) millis(name string) (millis int64, ok bool) {
	m := t.get(name)
	if m.kind != '0' {
		return 0, false
	}
	return parseMillis(m.value)
}

// fill sets a time that is missing, or that Scan would refuse.
func (t *timesObject) fill(name string, at time.Time) {
	if _, ok := t.millis(name); !ok {
		t.set(name, millisValue(at))
	}
}

// archive makes archived mean what the column says.
func (t *timesObject) archive(at *time.Time) {
	millis, archived := t.millis("archived")
	switch {
	case at == nil && t.get("archived").kind != 'n':
		t.drop("archived")
	case at != nil && !(archived && millis == at.UnixMilli()):
		t.set("archived", millisValue(*at))
	}
}

func millisValue(at time.Time) jsontext.Value {
	return strconv.AppendInt(nil, min(max(at.UnixMilli(), 0), maxMillis), 10)
}

// kept is what Scan and Messages put into Metadata.
type kept struct {
	version jsontext.Value // a string; nil for none
	extra   object
}

// parseMetadata reads Metadata, which users may have changed: what is not as this package wrote it counts as absent. Extra members
// of the taken names are left out.
func parseMetadata(metadata []byte, taken ...string) (k kept) {
	all, _ := parseObject(pgjson.Unescape(metadata))
	own, _ := parseObject(all.get("_opencode").value)
	if version := own.get("version"); version.kind == '"' {
		k.version = version.value
	}
	if extra := own.get("extra"); extra.kind == '"' {
		k.extra, _ = parseObject([]byte(pgjson.Clean(extra.value)))
		k.extra.drop(taken...)
	}
	return k
}

func quote(s string) jsontext.Value {
	quoted, _ := jsontext.AppendQuote(nil, s) // it fails for invalid UTF-8, which no column holds, and replaces that
	return quoted
}
