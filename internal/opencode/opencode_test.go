package opencode_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/uuid"

	"github.com/alkdev/hub/internal/opencode"
	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/pgjson/jsonequal"
)

// Every export goes through rows and comes back.
func TestRoundTripExports(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) != 19 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			written, err := roundTrip(raw)
			if err != nil {
				t.Fatal(err)
			}
			if d := jsonequal.Diff(raw, written); d != nil {
				t.Fatal(d)
			}
		})
	}
}

// twist is a small export with what real ones rarely have.
const twist = `{
  "later": {"a": [1e2, -0.0, "\u0000\ud83d\u0010"]},
  "info": {
    "id": "ses_1", "parentID": null, "version": "1.18.33\ud83d", "title": "NUL \u0000, half \ude00, mark \u0010", "slug": "s",
    "time": {"created": 1000.75, "updated": 2e3, "archived": 3000.5, "compacting": null}, "agent": null,
    "un\u0000known\ud83d": {"cost": 0.0, "n": 1.50}
  },
  "also\u0000": null,
  "messages": [
    {"parts": [
      {"type": "new-type", "id": "prt_1", "sessionID": "ses_1", "messageID": "msg_1", "text": "\u0000"},
      {"type": "text", "id": "prt_2", "sessionID": "ses_1", "messageID": "msg_1", "text": "", "cost": 1E-7}
    ], "info": {"role": "user", "time": {"created": 1000, "archived": "x"}, "id": "msg_1", "sessionID": "ses_1", "agent": "plan"}, "x": {"y": "\ud83d"}},
    {"info": {"role": "assistant", "time": {"created": 1000}, "id": "msg_2", "sessionID": "ses_1", "agent": "build"}, "parts": []},
    {"info": {"role": "system", "time": {"created": 999}, "id": "msg_3", "sessionID": "ses_1", "parentID": 5}, "parts": []},
    {"info": {"role": "user", "time": {"created": 1000}, "id": "msg_4", "sessionID": "ses_1", "agent": "plan"}, "parts": [
      {"type": "text", "id": "prt_3", "sessionID": "ses_1", "messageID": "msg_4"}
    ]}
  ]
}`

func TestScanOutline(t *testing.T) {
	t.Parallel()
	s := scan(t, twist)
	if s.SourceID != "ses_1" || s.ParentSourceID != nil || s.Agent != nil || s.Messages != 4 || s.Parts != 3 {
		t.Errorf("%+v", s)
	}
	if s.Title != "NUL \uFFFD, half \uFFFD, mark \u0010" {
		t.Errorf("title %q", s.Title)
	}
	if !slices.Equal(s.Agents, []string{"build", "plan"}) {
		t.Errorf("agents %q", s.Agents)
	}
	if s.Created.UnixMilli() != 1000 || s.Updated.UnixMilli() != 2000 || s.Archived == nil || s.Archived.UnixMilli() != 3000 {
		t.Errorf("times %v, %v, %v", s.Created, s.Updated, s.Archived)
	}
	wantText(t, "session data", s.Data, true, `{"parentID":null,"title":"NUL \u00100, half \u0010ude00, mark \u0010\u0010","slug":"s",
		"time":{"created":1000.75,"updated":2e3,"archived":3000.5,"compacting":null},"agent":null,
		"un\u00100known\u0010ud83d":{"cost":0.0,"n":1.50}}`)
	wantText(t, "session metadata", s.Metadata, false, `{"_opencode":{"version":"1.18.33\u0010ud83d",
		"extra":"{\"later\": {\"a\": [1e2, -0.0, \"\\u0000\\ud83d\\u0010\"]},\"also\\u0000\": null}"}}`)

	s = scan(t, `{"info":{"id":"s","parentID":"p","version":"","title":"","agent":"build","time":{"created":0,"updated":0}},"messages":[]}`)
	if s.ParentSourceID == nil || *s.ParentSourceID != "p" || s.Agent == nil || *s.Agent != "build" || s.Archived != nil {
		t.Errorf("%+v", s)
	}
	wantText(t, "session data", s.Data, false, `{"title":"","agent":"build","time":{"created":0,"updated":0}}`)
	wantText(t, "session metadata", s.Metadata, false, `{"_opencode":{"version":""}}`)
}

// A title is cut for its column, and comes back whole.
func TestLongTitle(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", opencode.MaxTitleLength)
	for _, title := range []string{long, long + "é", long + `\ud83d`} {
		raw := strings.Replace(minimal("", ""), `"title":""`, `"title":"`+title+`"`, 1)
		if s := scan(t, raw); s.Title != long {
			t.Errorf("a title of %d bytes becomes one of %d", len(title), len(s.Title))
		}
		checkExport(t, []byte(raw))
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	messages := collect(t, twist)
	if len(messages) != 4 {
		t.Fatalf("%d messages", len(messages))
	}
	m := messages[0]
	if m.SourceID != "msg_1" || m.Position != 0 || m.Role != "user" || m.Created.UnixMilli() != 1000 || len(m.Parts) != 2 {
		t.Errorf("%+v", m)
	}
	wantText(t, "data", m.Data, false, `{"time":{"created":1000,"archived":"x"},"agent":"plan"}`)
	wantText(t, "metadata", m.Metadata, false, `{"_opencode":{"extra":"{\"x\": {\"y\": \"\\ud83d\"}}"}}`)
	wantText(t, "metadata", messages[1].Metadata, false, `{}`)
	p := m.Parts[0]
	if p.SourceID != "prt_1" || p.Position != 0 || p.Type != "new-type" {
		t.Errorf("%+v", p)
	}
	wantText(t, "part", p.Data, false, `{"text":"\u00100"}`)
	wantText(t, "part's metadata", p.Metadata, false, `{}`)
	wantText(t, "part", m.Parts[1].Data, true, `{"text":"","cost":1E-7}`)
	wantText(t, "part", messages[3].Parts[0].Data, false, `{}`)

	for i, m := range messages {
		if int(m.Position) != i {
			t.Errorf("message %d at %d", i, m.Position)
		}
	}
	for m, err := range opencode.Messages(strings.NewReader(twist), scan(t, twist)) {
		if err != nil || m.SourceID != "msg_1" {
			t.Errorf("after break: %v, %v", m.SourceID, err)
		}
		break
	}
}

func TestRoundTripTwist(t *testing.T) {
	t.Parallel()
	infoLast := moveInfo(twist)
	for _, raw := range []string{twist, infoLast} {
		written, err := roundTrip([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		if d := jsonequal.Diff([]byte(raw), written); d != nil {
			t.Fatal(d)
		}
		if d := jsonequal.Diff([]byte(twist), written); d != nil {
			t.Fatal(d)
		}
	}
	a, b := scan(t, twist), scan(t, infoLast)
	if a.ID != b.ID || fmt.Sprint(collect(t, twist)) != fmt.Sprint(collect(t, infoLast)) {
		t.Error("the place of info makes a difference")
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	s := scan(t, twist)
	messages := collect(t, twist)
	check := func(id uuid.UUID, millis int64, randA int) {
		t.Helper()
		if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
			t.Errorf("%v is version %v, %v", id, id.Version(), id.Variant())
		}
		ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
		if got := int(id[6]&0x0F)<<8 | int(id[7]); ms != millis || got != randA {
			t.Errorf("%v has the time %d and rand_a %d, want %d and %d", id, ms, got, millis, randA)
		}
	}
	check(s.ID, 1000, 0)
	check(messages[0].ID, 1000, 0)
	check(messages[1].ID, 1000, 1)
	check(messages[2].ID, 999, 0)
	check(messages[3].ID, 1000, 2)
	check(messages[0].Parts[0].ID, 1000, 0)
	check(messages[0].Parts[1].ID, 1000, 0)
	check(messages[3].Parts[0].ID, 1000, 2)

	order := []uuid.UUID{messages[2].ID, messages[0].ID, messages[1].ID, messages[3].ID}
	parts := []uuid.UUID{messages[0].Parts[0].ID, messages[0].Parts[1].ID, messages[3].Parts[0].ID}
	for _, ids := range [][]uuid.UUID{order, parts} {
		if !slices.IsSortedFunc(ids, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }) {
			t.Errorf("not in order: %v", ids)
		}
	}
	if other := scan(t, strings.ReplaceAll(twist, "ses_1", "ses_2")); other.ID == s.ID || other.ID[7] != s.ID[7] {
		t.Errorf("%v and %v", s.ID, other.ID)
	}
	// They are part of what is stored: rows that were imported before must be found again.
	if got := s.ID.String() + " " + messages[1].ID.String() + " " + messages[0].Parts[1].ID.String(); got !=
		"00000000-03e8-7000-ad89-76770094b3dc 00000000-03e8-7001-8c3c-71c97b2d0536 00000000-03e8-7000-8000-047f7f5e93b8" {
		t.Errorf("the ids have changed: %s", got)
	}
}

func TestIDsBeyondTheirBits(t *testing.T) {
	t.Parallel()
	const n = 5000
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,{"info":{"id":"m%d","sessionID":"s","role":"user","time":{"created":5}},"parts":[]}`, i)
	}
	raw := minimal("", b.String()[1:])
	seen := map[uuid.UUID]bool{}
	var last uuid.UUID
	for i, m := range collect(t, raw) {
		if i < 4096 && bytes.Compare(last[:], m.ID[:]) >= 0 || seen[m.ID] {
			t.Fatalf("message %d: %v after %v", i, m.ID, last)
		}
		seen[m.ID] = true
		last = m.ID
	}
	if len(seen) != n {
		t.Errorf("%d ids", len(seen))
	}
}

// Each export at fault stands beside one that differs in one value and passes.
func TestScanRefuses(t *testing.T) {
	t.Parallel()
	const base = `{"info":{"id":"ses_1","parentID":"ses_0","title":"t","version":"v","agent":"a","time":{"created":1,"updated":2,"archived":3}},` +
		`"messages":[` +
		`{"info":{"id":"msg_1","sessionID":"ses_1","role":"user","agent":"a","time":{"created":1}},"parts":[` +
		`{"id":"prt_1","sessionID":"ses_1","messageID":"msg_1","type":"text"}]},` +
		`{"info":{"id":"msg_2","sessionID":"ses_1","role":"assistant","time":{"created":1}},"parts":[` +
		`{"id":"prt_2","sessionID":"ses_1","messageID":"msg_2","type":"text"},` +
		`{"id":"prt_3","sessionID":"ses_1","messageID":"msg_2","type":"text"}]}]}`
	long, longest := strings.Repeat("x", 201), strings.Repeat("é", 100)
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	tests := []struct {
		old, bad, good, pointer, message string
	}{
		{`{"info"`, `[{"info"`, `{"info"`, "", "must be an object"},
		{`"info":{"id":"ses_1"`, `"inf":{"id":"ses_1"`, `"info":{"id":"ses_1"`, "/info", "is missing"},
		{`"messages"`, `"message"`, `"messages"`, "/messages", "is missing"},
		{`"info":{"id":"ses_1"`, `"info":[],"x":{"id":"ses_1"`, `"x":[],"info":{"id":"ses_1"`, "/info", "must be an object"},
		{`"messages":[`, `"messages":{},"x":[`, `"x":{},"messages":[`, "/messages", "must be an array"},
		{`"messages":[`, `"messages":[null,`, `"messages":[`, "/messages/0", "must be an object"},

		{`"id":"ses_1",`, ``, `"id":"ses_1",`, "/info/id", "is missing"},
		{`"id":"ses_1",`, `"id":1,`, `"id":"ses_1",`, "/info/id", "must be a string"},
		{`"id":"ses_1",`, `"id":null,`, `"id":"ses_1",`, "/info/id", "must be a string"},
		{`ses_1`, ``, `s`, "/info/id", "must not be empty"},
		{`ses_1`, long, long[1:], "/info/id", "200 bytes"},
		{`ses_1`, longest + "x", longest, "/info/id", "200 bytes"},
		{`ses_1`, `a\u0000`, `a\u0001`, "/info/id", "U+0000"},
		{`ses_1`, `a\ud83d`, `a\ud83d\ude00`, "/info/id", "surrogate"},
		{`"title":"t",`, ``, `"title":"",`, "/info/title", "is missing"},
		{`"title":"t"`, `"title":["t"]`, `"title":"\u0000\ud83d"`, "/info/title", "must be a string"},
		{`"version":"v",`, ``, `"version":"",`, "/info/version", "is missing"},
		{`"version":"v"`, `"version":1`, `"version":"\u0000\ud83d"`, "/info/version", "must be a string"},
		{`"parentID":"ses_0"`, `"parentID":0`, `"parentID":null`, "/info/parentID", "must be a string"},
		{`"parentID":"ses_0"`, `"parentID":""`, `"parentID":"x"`, "/info/parentID", "must not be empty"},
		{`"parentID":"ses_0"`, `"parentID":"ses_1"`, `"parentID":"ses_2"`, "/info/parentID", "itself"},
		{`"agent":"a","time":{"created":1,"u`, `"agent":0,"time":{"created":1,"u`, `"agent":null,"time":{"created":1,"u`, "/info/agent", "must be a string"},
		{`"agent":"a","time":{"created":1,"u`, `"agent":"\u0000","time":{"created":1,"u`, `"agent":"","time":{"created":1,"u`, "/info/agent", "U+0000"},
		{`"agent":"a","time":{"created":1}`, `"agent":[],"time":{"created":1}`, `"agent":null,"time":{"created":1}`, "/messages/0/info/agent", "must be a string"},
		{`"agent":"a","time":{"created":1}`, `"agent":"` + long + `","time":{"created":1}`, `"agent":"` + long[1:] + `","time":{"created":1}`, "/messages/0/info/agent", "200 bytes"},

		{`"time":{"created":1,"updated":2,"archived":3}`, `"tim":0`, `"time":{"created":0,"updated":0}`, "/info/time", "is missing"},
		{`"time":{"created":1,"updated":2,"archived":3}`, `"time":0`, `"time":{"created":0,"updated":0}`, "/info/time", "must be an object"},
		{`"created":1,"updated"`, `"updated"`, `"created":0,"updated"`, "/info/time/created", "is missing"},
		{`"created":1,"updated"`, `"created":null,"updated"`, `"created":1.5,"updated"`, "/info/time/created", "must be a number"},
		{`"created":1,"updated"`, `"created":-1,"updated"`, `"created":-0,"updated"`, "/info/time/created", "milliseconds"},
		{`"created":1,"updated"`, `"created":253402300800000,"updated"`, `"created":253402300799999,"updated"`, "/info/time/created", "milliseconds"},
		{`"created":1,"updated"`, `"created":1e300,"updated"`, `"created":1e13,"updated"`, "/info/time/created", "milliseconds"},
		{`,"updated":2`, ``, `,"updated":0`, "/info/time/updated", "is missing"},
		{`"updated":2`, `"updated":"2"`, `"updated":2.0`, "/info/time/updated", "must be a number"},
		{`"archived":3`, `"archived":"3"`, `"archived":null`, "/info/time/archived", "must be a number"},
		{`"archived":3`, `"archived":-3`, `"archived":0`, "/info/time/archived", "milliseconds"},

		{`"info":{"id":"msg_1"`, `"inf":{"id":"msg_1"`, `"info":{"id":"msg_1"`, "/messages/0/info", "is missing"},
		{`"info":{"id":"msg_1"`, `"info":[],"x":{"id":"msg_1"`, `"x":[],"info":{"id":"msg_1"`, "/messages/0/info", "must be an object"},
		{`{"id":"msg_1",`, `{`, `{"id":"msg_1",`, "/messages/0/info/id", "is missing"},
		{`{"id":"msg_2"`, `{"id":2`, `{"id":"msg_2"`, "/messages/1/info/id", "must be a string"},
		{`{"id":"msg_2"`, `{"id":"msg_1"`, `{"id":"msg_2"`, "/messages/1/info/id", "earlier message"},
		{`"sessionID":"ses_1","role":"user"`, `"role":"user"`, `"sessionID":"ses_1","role":"user"`, "/messages/0/info/sessionID", "is missing"},
		{`"sessionID":"ses_1","role":"user"`, `"sessionID":1,"role":"user"`, `"sessionID":"ses_1","role":"user"`, "/messages/0/info/sessionID", "must be a string"},
		{`"sessionID":"ses_1","role":"assistant"`, `"sessionID":"ses_2","role":"assistant"`, `"sessionID":"ses\u005f1","role":"assistant"`, "/messages/1/info/sessionID", "session's id"},
		{`"role":"user",`, ``, `"role":"system",`, "/messages/0/info/role", "is missing"},
		{`"role":"user"`, `"role":"tool"`, `"role":"system"`, "/messages/0/info/role", "user, assistant or system"},
		{`"role":"user"`, `"role":7`, `"role":"assistant"`, "/messages/0/info/role", "must be a string"},
		{`,"time":{"created":1}},"parts":[{"id":"prt_1"`, `},"parts":[{"id":"prt_1"`, `,"time":{"created":0}},"parts":[{"id":"prt_1"`, "/messages/0/info/time", "is missing"},
		{`"time":{"created":1}},"parts":[{"id":"prt_1"`, `"time":{}},"parts":[{"id":"prt_1"`, `"time":{"created":0}},"parts":[{"id":"prt_1"`, "/messages/0/info/time/created", "is missing"},
		{`"time":{"created":1}},"parts":[{"id":"prt_2"`, `"time":{"created":true}},"parts":[{"id":"prt_2"`, `"time":{"created":0}},"parts":[{"id":"prt_2"`, "/messages/1/info/time/created", "must be a number"},
		{`"parts":[{"id":"prt_1"`, `"part":[{"id":"prt_1"`, `"parts":[{"id":"prt_1"`, "/messages/0/parts", "is missing"},
		{`"parts":[{"id":"prt_1"`, `"parts":{},"x":[{"id":"prt_1"`, `"x":{},"parts":[{"id":"prt_1"`, "/messages/0/parts", "must be an array"},

		{`{"id":"prt_3"`, `[],{"id":"prt_3"`, `{"id":"prt_3"`, "/messages/1/parts/1", "must be an object"},
		{`"id":"prt_3",`, ``, `"id":"prt_4",`, "/messages/1/parts/1/id", "is missing"},
		{`"id":"prt_3"`, `"id":3`, `"id":"prt_4"`, "/messages/1/parts/1/id", "must be a string"},
		{`"id":"prt_3"`, `"id":"prt_1"`, `"id":"prt_4"`, "/messages/1/parts/1/id", "earlier part"},
		{`"prt_1","sessionID":"ses_1",`, `"prt_1",`, `"prt_1","sessionID":"ses_1",`, "/messages/0/parts/0/sessionID", "is missing"},
		{`"prt_1","sessionID":"ses_1"`, `"prt_1","sessionID":"ses_2"`, `"prt_1","sessionID":"ses_1"`, "/messages/0/parts/0/sessionID", "session's id"},
		{`"messageID":"msg_1",`, ``, `"messageID":"msg_1",`, "/messages/0/parts/0/messageID", "is missing"},
		{`"messageID":"msg_1"`, `"messageID":"msg_2"`, `"messageID":"msg_1"`, "/messages/0/parts/0/messageID", "message's id"},
		{`"messageID":"msg_1"`, `"messageID":{}`, `"messageID":"msg_1"`, "/messages/0/parts/0/messageID", "must be a string"},
		{`"messageID":"msg_1","type":"text"`, `"messageID":"msg_1"`, `"messageID":"msg_1","type":"x"`, "/messages/0/parts/0/type", "is missing"},
		{`"messageID":"msg_1","type":"text"`, `"messageID":"msg_1","type":""`, `"messageID":"msg_1","type":"x"`, "/messages/0/parts/0/type", "must not be empty"},
		{`"messageID":"msg_1","type":"text"`, `"messageID":"msg_1","type":"\ude00"`, `"messageID":"msg_1","type":"x"`, "/messages/0/parts/0/type", "surrogate"},
		{`"messageID":"msg_1","type":"text"`, `"messageID":"msg_1","type":null`, `"messageID":"msg_1","type":"x"`, "/messages/0/parts/0/type", "must be a string"},

		{`"title"`, `"n":1e401,"title"`, `"n":1e400,"title"`, "/info/n", "exponent"},
		{`"title"`, `"n":` + deep(256) + `,"title"`, `"n":` + deep(255) + `,"title"`, "/info/n" + strings.Repeat("/0", 255), "deeper than 256"},
		{`"type":"text"}]},`, `"type":"text","n":` + deep(256) + `}]},`, `"type":"text","n":` + deep(255) + `}]},`,
			"/messages/0/parts/0/n" + strings.Repeat("/0", 255), "deeper than 256"},
		{`"messages"`, `"n":` + deep(257) + `,"messages"`, `"n":` + deep(256) + `,"messages"`, "/n" + strings.Repeat("/0", 256), "deeper than 256"},
		{`"title"`, `"n":1,"n":2,"title"`, `"n":1,"N":2,"title"`, "/info/n", "twice"},
		{`"messages"`, `"info":{},"messages"`, `"inf":{},"messages"`, "/info", "twice"},
		{`"type":"text"`, "\"type\":\"te\xffxt\"", `"type":"teéxt"`, "/messages/0/parts/0/type", "UTF-8"},
		{`"type":"text"`, `"type":text`, `"type":"text"`, "/messages/0/parts/0/type", "must be a string"},
		{`}]}]}`, `}]}]}]`, `}]}]} `, "", "more data"},
		{`}]}]}`, `}]}]`, `}]}]} `, "", "cut short"},
	}
	for i, tt := range tests {
		t.Run(fmt.Sprint(i, tt.pointer[max(0, len(tt.pointer)-30):], tt.message), func(t *testing.T) {
			t.Parallel()
			if strings.Count(base, tt.old) == 0 {
				t.Fatalf("%s is not in the export", tt.old)
			}
			n := 1
			if strings.HasSuffix(tt.old, "ses_1") {
				n = -1 // everywhere
			}
			good := strings.Replace(base, tt.old, tt.good, n)
			if _, err := roundTrip([]byte(good)); err != nil {
				t.Errorf("the twin: %v", err)
			}
			bad := strings.Replace(base, tt.old, tt.bad, n)
			for _, raw := range []string{bad, moveInfo(bad)} {
				wantFault(t, raw, tt.pointer, tt.message)
				if tt.pointer == "" || tt.pointer == "/info" || tt.pointer == "/info/id" {
					break // with info last, another fault comes first
				}
			}
		})
	}
}

// With info last, it is the first mention that shows.
func TestScanRefusesForeignMessages(t *testing.T) {
	t.Parallel()
	wantFault(t, moveInfo(strings.ReplaceAll(twist, `"sessionID": "ses_1"`, `"sessionID": "ses_2"`)), "/messages/0/parts/0/sessionID", "session's id")
	wantFault(t, strings.ReplaceAll(twist, `"messageID": "msg_1"`, `"messageID": "msg_9"`), "/messages/0/parts/0/messageID", "message's id")
	wantFault(t, strings.Replace(twist, `"id": "msg_1"`, `"x": "msg_1"`, 1), "/messages/0/info/id", "is missing")

	s := scan(t, twist)
	for _, err := range opencode.Messages(strings.NewReader(strings.ReplaceAll(twist, "ses_1", "ses_2")), s) {
		if fault := new(opencode.Error); !errors.As(err, &fault) || fault.Pointer != "/info/id" {
			t.Errorf("another session: %v", err)
		}
	}
}

func TestTruncated(t *testing.T) {
	t.Parallel()
	raw := read(t, "18-rare-part-types.json")
	raw = bytes.TrimSpace(raw)
	s := scan(t, string(raw))
	for n := 0; n < len(raw); n += 3 {
		_, err := opencode.Scan(bytes.NewReader(raw[:n]))
		var fault *opencode.Error
		if !errors.As(err, &fault) || fault.Offset != int64(n) || !strings.Contains(fault.Message, "cut short") {
			t.Fatalf("%d bytes: %v", n, err)
		}
		_, err = opencode.Scan(io.MultiReader(bytes.NewReader(raw[:n]), iotest.ErrReader(io.ErrClosedPipe)))
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("%d bytes, then an error: %v", n, err)
		}
		failed := false
		for _, err := range opencode.Messages(bytes.NewReader(raw[:n]), s) {
			failed = err != nil
		}
		if !failed {
			t.Fatalf("%d bytes: Messages does not notice", n)
		}
	}
}

// A fault ends the reading.
func TestScanReadsNoFurther(t *testing.T) {
	t.Parallel()
	head := `{"info":{"id":"s","version":"","title":"","time":{"created":0,"updated":0}},"messages":[`
	for name, start := range map[string]string{
		"nonsense": "nonsense", "array": "[1,", "bytes": "\x00", "string": `"`, "bad UTF-8": `{"info":{"title":"` + "\xff", "wrong id": `{"info":{"id":[`,
		"deep": strings.Repeat("[", 300), "wrong role": head + `{"info":{"role":"x","y":"`, "long number": `{"x":` + strings.Repeat("1", 1001),
		"wrong part": head + `{"info":{"id":"m","sessionID":"s","role":"user","time":{"created":0}},"parts":[{"id":"p","sessionID":"x","y":"`,
		"id":         head + `{"info":{"id":7,"x":"`,
	} {
		rest := &counter{r: endless{}}
		_, err := opencode.Scan(io.MultiReader(strings.NewReader(start), io.LimitReader(rest, 300<<20)))
		if fault := new(opencode.Error); !errors.As(err, &fault) || rest.n > 256<<10 {
			t.Errorf("%s: %v after %d bytes", name, err, rest.n)
		}
	}
}

// The memory that reading needs is that of the largest message.
func TestScanMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 64 MB twice")
	}
	const size, largest = 64 << 20, 1 << 20
	base := liveHeap()
	var peak uint64
	watch := func() { peak = max(peak, liveHeap()-min(base, liveHeap())) }
	s, err := opencode.Scan(&counter{r: big(size, largest), every: 16 << 20, f: watch})
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for m, err := range opencode.Messages(&counter{r: big(size, largest), every: 16 << 20, f: watch}, s) {
		if err != nil || len(m.Parts) != 2 {
			t.Fatal(err)
		}
		count++
	}
	if count != s.Messages || count < size/largest {
		t.Errorf("%d messages of %d", count, s.Messages)
	}
	if peak > 8*largest {
		t.Errorf("%d bytes are held, %d times the largest message", peak, peak/largest)
	}
}

func FuzzScan(f *testing.F) {
	for _, name := range []string{"07-unicode.json", "15-tree-root.json", "18-rare-part-types.json"} {
		f.Add(read(f, name))
	}
	f.Add([]byte(twist))
	f.Add([]byte(moveInfo(twist)))
	f.Add([]byte(minimal("", "")))
	f.Add([]byte(minimal(`,"x":{"info":[1e2]},"y":"\u0000"`, `{"info":{"id":"m","sessionID":"s","role":"user","time":{"created":1}},"parts":[],"info2":1}`)))
	f.Fuzz(func(t *testing.T, raw []byte) { checkExport(t, raw) })
}

// Any token, names included, may become any other value.
func TestMutations(t *testing.T) {
	t.Parallel()
	tokens := regexp.MustCompile(`"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|null`)
	values := []string{`null`, `0`, `-0.0`, `1e2`, `253402300799999.9`, `""`, `"\u0000"`, `"x\ud83d"`, `"\u00100"`, `"id"`, `"é~/"`, `[]`, `{}`, `[{"":[]}]`}
	accepted := 0
	for _, raw := range []string{twist, moveInfo(twist)} {
		for _, at := range tokens.FindAllStringIndex(raw, -1) {
			for _, value := range values {
				if checkExport(t, []byte(raw[:at[0]]+value+raw[at[1]:])) {
					accepted++
				}
			}
		}
	}
	if accepted < 500 {
		t.Errorf("only %d mutations are accepted: they are not worth much", accepted)
	}
}

// checkExport checks what holds for any bytes at all: Scan refuses them with a fault, or what it accepts can be stored, read, and
// written again. It reports whether they were accepted.
func checkExport(t *testing.T, raw []byte) bool {
	t.Helper()
	s, err := opencode.Scan(bytes.NewReader(raw))
	if err != nil {
		if fault := new(opencode.Error); !errors.As(err, &fault) || fault.Offset < 0 || fault.Offset > int64(len(raw)) {
			t.Fatalf("%#v for %s", err, raw)
		}
		return false
	}
	wantStorable(t, s.Data)
	wantStorable(t, s.Metadata)
	collect(t, string(raw))
	written, err := roundTrip(raw)
	if err != nil {
		t.Fatalf("scanned, but: %v for %s", err, raw)
	}
	if d := jsonequal.Diff(raw, written); d != nil {
		t.Fatalf("%v for %s", d, raw)
	}
	again, err := opencode.Scan(bytes.NewReader(written))
	if err != nil || again.ID != s.ID || again.Messages != s.Messages || again.Parts != s.Parts {
		t.Fatalf("%+v, %v for %s", again, err, raw)
	}
	return true
}

func BenchmarkScan(b *testing.B) {
	for _, name := range []string{"12-large-output.json", "02-tools-fix-discount.json"} {
		raw := read(b, name)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := opencode.Scan(bytes.NewReader(raw)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMessages(b *testing.B) {
	for _, name := range []string{"12-large-output.json", "02-tools-fix-discount.json"} {
		raw := read(b, name)
		s := scan(b, string(raw))
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range opencode.Messages(bytes.NewReader(raw), s) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// roundTrip reads an export twice and writes it from rows as the hub would store them.
func roundTrip(raw []byte) ([]byte, error) {
	s, err := opencode.Scan(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := opencode.NewWriter(&out)
	err = w.Session(opencode.SessionRecord{
		ID: s.ID, SourceID: &s.SourceID, ParentSourceID: s.ParentSourceID, ProjectID: uuid.UUID{1}, Slug: "hub", Title: s.Title,
		ArchivedAt: s.Archived, CreatedAt: s.Created, UpdatedAt: time.Now(), Data: s.Data.JSON, Metadata: s.Metadata.JSON,
	})
	if err != nil {
		return nil, err
	}
	count, parts := 0, 0
	for m, err := range opencode.Messages(bytes.NewReader(raw), s) {
		if err != nil {
			return nil, err
		}
		count++
		parts += len(m.Parts)
		if err := w.Message(record(m)); err != nil {
			return nil, err
		}
	}
	if count != s.Messages || parts != s.Parts {
		return nil, fmt.Errorf("%d messages and %d parts, want %d and %d", count, parts, s.Messages, s.Parts)
	}
	err = w.Close()
	return out.Bytes(), err
}

func record(m opencode.Message) opencode.MessageRecord {
	r := opencode.MessageRecord{
		ID: m.ID, SourceID: &m.SourceID, Role: m.Role, CreatedAt: m.Created, Data: m.Data.JSON, Metadata: m.Metadata.JSON,
	}
	for _, p := range m.Parts {
		r.Parts = append(r.Parts, opencode.PartRecord{ID: p.ID, SourceID: &p.SourceID, Type: p.Type, Data: p.Data.JSON})
	}
	return r
}

// minimal returns an export with more members behind info's id, and messages.
func minimal(more, messages string) string {
	return `{"info":{"id":"s"` + more + `,"title":"","version":"","time":{"created":0,"updated":0}},"messages":[` + messages + `]}`
}

// moveInfo moves the session's info to the end of an export whose messages come last.
func moveInfo(raw string) string {
	start := strings.Index(raw, `"info":`)
	end := strings.Index(raw, `"messages"`)
	if start < 0 || end < start {
		return raw
	}
	info := strings.TrimRight(raw[start:end], " ,\n")
	last := strings.LastIndex(raw, "}")
	return raw[:start] + raw[end:last] + "," + info + raw[last:]
}

func scan(t testing.TB, raw string) *opencode.Session {
	t.Helper()
	s, err := opencode.Scan(strings.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func collect(t testing.TB, raw string) []opencode.Message {
	t.Helper()
	var all []opencode.Message
	for m, err := range opencode.Messages(strings.NewReader(raw), scan(t, raw)) {
		if err != nil {
			t.Fatal(err)
		}
		wantStorable(t, m.Data)
		wantStorable(t, m.Metadata)
		for _, p := range m.Parts {
			wantStorable(t, p.Data)
		}
		all = append(all, m)
	}
	return all
}

// wantStorable checks that jsonb can hold a text, and that it says so itself when a number is respelled.
func wantStorable(t testing.TB, text pgjson.Text) {
	t.Helper()
	checked, err := pgjson.Escape(text.JSON)
	if err != nil || checked.Respelled != text.Respelled {
		t.Errorf("%s: respelled %v, %v", text.JSON, text.Respelled, err)
	}
	for err := range pgjson.FindUnstorable(text.JSON) {
		t.Error(err)
	}
}

func wantText(t *testing.T, what string, got pgjson.Text, respelled bool, want string) {
	t.Helper()
	wantStorable(t, got)
	if d := jsonequal.Diff(got.JSON, []byte(want)); d != nil || got.Respelled != respelled {
		t.Errorf("%s is %s, respelled %v: %v", what, got.JSON, got.Respelled, d)
	}
}

func wantFault(t *testing.T, raw, pointer, message string) {
	t.Helper()
	_, err := opencode.Scan(strings.NewReader(raw))
	var fault *opencode.Error
	if !errors.As(err, &fault) {
		t.Errorf("%v, want a fault at %s: %s", err, pointer, raw)
		return
	}
	if fault.Pointer != pointer || !strings.Contains(fault.Message, message) || fault.Offset > int64(len(raw)) {
		t.Errorf("%v, want %s: %s", err, pointer, message)
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// big returns an export of about the given size, of messages of about the size of the largest.
func big(size, largest int) io.Reader {
	text := strings.Repeat("0123456789abcde\\n", largest/34)
	readers := []io.Reader{strings.NewReader(`{"info":{"id":"s","title":"","version":"","time":{"created":0,"updated":0}},"messages":[`)}
	for i := range size / largest {
		comma := ","
		if i == 0 {
			comma = ""
		}
		readers = append(readers,
			strings.NewReader(fmt.Sprintf(`%s{"info":{"id":"m%d","sessionID":"s","role":"user","time":{"created":%d}},"parts":[
				{"id":"p%d","sessionID":"s","messageID":"m%d","type":"text","text":"`, comma, i, i, i, i)), strings.NewReader(text),
			strings.NewReader(fmt.Sprintf(`"},{"id":"q%d","sessionID":"s","messageID":"m%d","type":"text","text":"`, i, i)), strings.NewReader(text),
			strings.NewReader(`"}]}`))
	}
	return io.MultiReader(append(readers, strings.NewReader("]}"))...)
}

func liveHeap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// counter counts what is read through it, and calls f every so many bytes.
type counter struct {
	r        io.Reader
	n, every int
	f        func()
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.every > 0 && c.n/c.every != (c.n+n)/c.every {
		c.f()
	}
	c.n += n
	return n, err
}

// endless is a text without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}
