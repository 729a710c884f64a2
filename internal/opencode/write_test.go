package opencode_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/alkdev/hub/internal/opencode"
	"github.com/alkdev/hub/internal/pgjson/jsonequal"
)

var (
	bornID      = uuid.MustParse("01890000-0000-7000-8000-000000000001")
	bornParent  = uuid.MustParse("01890000-0000-7000-8000-000000000002")
	bornProject = uuid.MustParse("01890000-0000-7000-8000-000000000003")
	bornMessage = uuid.MustParse("01890000-0000-7000-8000-000000000004")
	bornPart    = uuid.MustParse("01890000-0000-7000-8000-000000000005")
)

func born() (opencode.SessionRecord, opencode.MessageRecord) {
	role := "builder"
	at := time.UnixMilli(1000).Add(700 * time.Microsecond)
	return opencode.SessionRecord{
			ID: bornID, ParentID: &bornParent, ProjectID: bornProject, Slug: "slug", Title: "Title", RoleName: &role,
			CreatedAt: at, UpdatedAt: at.Add(time.Second),
		}, opencode.MessageRecord{
			ID: bornMessage, Role: "user", CreatedAt: at, Data: []byte(`{}`), Metadata: []byte(`{}`),
			Parts: []opencode.PartRecord{{ID: bornPart, Type: "text", Data: []byte(`{"text": "a\u00100", "list": [], "n": {"x": 1.50}}`)}},
		}
}

func TestWriterOfHubBornRows(t *testing.T) {
	t.Parallel()
	s, m := born()
	want := `{
  "info": {
    "id": "ses_01890000000070008000000000000001",
    "title": "Title",
    "parentID": "ses_01890000000070008000000000000002",
    "version": "hub",
    "time": {
      "created": 1000,
      "updated": 2000
    },
    "agent": "builder",
    "slug": "slug",
    "projectID": "01890000-0000-7000-8000-000000000003",
    "directory": ""
  },
  "messages": [
    {
      "info": {
        "id": "msg_01890000000070008000000000000004",
        "sessionID": "ses_01890000000070008000000000000001",
        "role": "user",
        "time": {
          "created": 1000
        },
        "agent": "builder"
      },
      "parts": [
        {
          "id": "prt_01890000000070008000000000000005",
          "sessionID": "ses_01890000000070008000000000000001",
          "messageID": "msg_01890000000070008000000000000004",
          "type": "text",
          "text": "a\u0000",
          "list": [],
          "n": {
            "x": 1.50
          }
        }
      ]
    }
  ]
}
`
	got := write(t, s, m)
	if got != want {
		t.Errorf("wrote %s", got)
	}
	again := scan(t, got)
	if again.Title != "Title" || *again.Agent != "builder" || again.Messages != 1 || again.Parts != 1 {
		t.Errorf("%+v", again)
	}
}

// What users put into Data gives way to the columns only where Scan would refuse it.
func TestWriterMendsData(t *testing.T) {
	t.Parallel()
	tests := []struct {
		data, metadata string
		change         func(*opencode.SessionRecord)
		want           string // info without id
		top            string // what stands between info and messages
	}{
		{data: `{"title":"Title","version":"9","slug":"x","projectID":null,"directory":"/d","agent":"a","parentID":"y","id":1,
			"time":{"created":5.5,"updated":6,"x":1e2}}`,
			want: `{"title":"Title","version":"9","slug":"x","projectID":null,"directory":"/d","agent":"a","parentID":"P","time":{"created":5.5,"updated":6,"x":1e2}}`},
		{data: `{"title":5,"version":null,"agent":7,"time":{"created":"x","updated":-1,"archived":[],"y":0}}`,
			want: `{"title":"Title","version":"hub","slug":"slug","projectID":"Q","directory":"","agent":"builder","parentID":"P",
				"time":{"created":1000,"updated":2000,"y":0}}`},
		{data: `{"agent":"\u00100","time":"now"}`,
			change: func(s *opencode.SessionRecord) { s.RoleName = nil },
			want:   `{"title":"Title","version":"hub","slug":"slug","projectID":"Q","directory":"","parentID":"P","time":{"created":1000,"updated":2000}}`},
		{data: `{"agent":null,"parentID":null}`,
			change: func(s *opencode.SessionRecord) { s.ParentID = nil },
			want: `{"title":"Title","version":"hub","slug":"slug","projectID":"Q","directory":"","agent":null,"parentID":null,
				"time":{"created":1000,"updated":2000}}`},
		{data: `{"parentID":"gone"}`,
			change: func(s *opencode.SessionRecord) {
				s.ParentID = nil
				s.CreatedAt, s.UpdatedAt = time.UnixMilli(-5), time.UnixMilli(1<<62)
			},
			want: `{"title":"Title","version":"hub","slug":"slug","projectID":"Q","directory":"","agent":"builder",
				"time":{"created":0,"updated":253402300799999}}`},
		{metadata: `{"mine":1,"_opencode":{"version":7,"extra":"[]"}}`, change: func(s *opencode.SessionRecord) { s.RoleName = &longName },
			want: `{"title":"Title","version":"hub","slug":"slug","projectID":"Q","directory":"","parentID":"P","time":{"created":1000,"updated":2000}}`},
		{metadata: `{"_opencode":{"version":"1\u00100","extra":"{\"info\":1,\"x\":1,\"messages\":2}"}}`,
			want: `{"title":"Title","version":"1\u0000","slug":"slug","projectID":"Q","directory":"","agent":"builder","parentID":"P",
				"time":{"created":1000,"updated":2000}}`, top: `"x":1,`},
	}
	for _, tt := range tests {
		s, m := born()
		s.Data, s.Metadata = []byte(tt.data), []byte(tt.metadata)
		if tt.change != nil {
			tt.change(&s)
		}
		got := write(t, s, m)
		scan(t, got)

		want := strings.NewReplacer(`"P"`, `"ses_01890000000070008000000000000002"`, `"Q"`, `"`+bornProject.String()+`"`,
			`{"title"`, `{"id":"ses_01890000000070008000000000000001","title"`).Replace(tt.want)
		_, messages, _ := strings.Cut(got, `"messages":`)
		want = `{"info":` + want + `,` + tt.top + `"messages":` + messages
		if d := jsonequal.Diff([]byte(got), []byte(want)); d != nil {
			t.Errorf("%s\n%s: %v in\n%s", tt.data, tt.metadata, d, got)
		}
	}
}

var longName = strings.Repeat("x", opencode.MaxIDLength+1)

// An import that was changed in the hub shows the change, and nothing else.
func TestWriterShowsChanges(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(5000).Add(300 * time.Microsecond)
	tests := map[string]struct {
		data   string // title and time
		change func(*opencode.SessionRecord)
		want   string
	}{
		"nothing":         {`"title":"a\u0000","time":{"created":1,"updated":2}`, func(*opencode.SessionRecord) {}, `"title":"a\u0000","time":{"created":1,"updated":2}`},
		"updated":         {`"title":"a","time":{"created":1,"updated":2}`, func(s *opencode.SessionRecord) { s.UpdatedAt = at }, `"title":"a","time":{"created":1,"updated":2}`},
		"title":           {`"title":"a\u0000","time":{"created":1,"updated":2}`, func(s *opencode.SessionRecord) { s.Title = "b" }, `"title":"b","time":{"created":1,"updated":2}`},
		"archived":        {`"title":"","time":{"created":1,"updated":2}`, func(s *opencode.SessionRecord) { s.ArchivedAt = &at }, `"title":"","time":{"created":1,"updated":2,"archived":5000}`},
		"archived, null":  {`"title":"","time":{"created":1,"updated":2,"archived":null}`, func(s *opencode.SessionRecord) { s.ArchivedAt = &at }, `"title":"","time":{"created":1,"updated":2,"archived":5000}`},
		"archived later":  {`"title":"","time":{"created":1,"updated":2,"archived":3}`, func(s *opencode.SessionRecord) { s.ArchivedAt = &at }, `"title":"","time":{"created":1,"updated":2,"archived":5000}`},
		"archived as was": {`"title":"","time":{"created":1,"updated":2,"archived":5e3}`, func(s *opencode.SessionRecord) { s.ArchivedAt = &at }, `"title":"","time":{"created":1,"updated":2,"archived":5e3}`},
		"taken back":      {`"title":"","time":{"created":1,"updated":2,"archived":3}`, func(s *opencode.SessionRecord) { s.ArchivedAt = nil }, `"title":"","time":{"created":1,"updated":2}`},
		"null":            {`"title":"","time":{"created":1,"updated":2,"archived":null}`, func(*opencode.SessionRecord) {}, `"title":"","time":{"created":1,"updated":2,"archived":null}`},
		"role":            {`"title":"","time":{"created":1,"updated":2}`, func(s *opencode.SessionRecord) { s.RoleName = &s.Slug }, `"title":"","time":{"created":1,"updated":2}`},
		"parent": {`"title":"","time":{"created":1,"updated":2},"parentID":null`, func(s *opencode.SessionRecord) { s.ParentSourceID = &s.Slug },
			`"title":"","time":{"created":1,"updated":2},"parentID":"slug"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			export := func(info string) string { return `{"info":{"id":"s","version":"v",` + info + `},"messages":[]}` }
			in := scan(t, export(tt.data))
			r := opencode.SessionRecord{
				ID: in.ID, SourceID: &in.SourceID, ParentSourceID: in.ParentSourceID, Slug: "slug", Title: in.Title,
				ArchivedAt: in.Archived, CreatedAt: in.Created, UpdatedAt: in.Updated, Data: in.Data.JSON, Metadata: in.Metadata.JSON,
			}
			tt.change(&r)
			got := write(t, r)
			if d := jsonequal.Diff([]byte(got), []byte(export(tt.want))); d != nil {
				t.Errorf("%v in %s", d, got)
			}
		})
	}
}

func TestWriterRefuses(t *testing.T) {
	t.Parallel()
	s, m := born()
	w := opencode.NewWriter(&bytes.Buffer{})
	if w.Message(m) == nil || w.Close() == nil {
		t.Error("an export without its session")
	}
	if err := w.Session(s); err != nil {
		t.Fatal(err)
	}
	if w.Session(s) == nil {
		t.Error("a second session")
	}
	m.Parts[0].Data = []byte(`[]`)
	if w.Message(m) == nil {
		t.Error("data that is no object")
	}

	broken := errors.New("broken")
	w = opencode.NewWriter(writerFunc(func(p []byte) (int, error) { return 0, broken }))
	err := w.Session(s)
	if err == nil {
		err = w.Close()
	}
	if !errors.Is(err, broken) {
		t.Error(err)
	}
}

// A Writer does not collect what it writes.
func TestWriterStreams(t *testing.T) {
	t.Parallel()
	largest := 0
	w := opencode.NewWriter(writerFunc(func(p []byte) (int, error) {
		largest = max(largest, len(p))
		return len(p), nil
	}))
	s, m := born()
	if err := w.Session(s); err != nil {
		t.Fatal(err)
	}
	m.Parts[0].Data = []byte(`{"text":"` + strings.Repeat("x", 100_000) + `"}`)
	for range 100 {
		if err := w.Message(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil || largest > 1_000_000 {
		t.Errorf("%v, %d bytes at once", err, largest)
	}
}

func BenchmarkWriter(b *testing.B) {
	raw := read(b, "12-large-output.json")
	in := scan(b, string(raw))
	session := opencode.SessionRecord{ID: in.ID, SourceID: &in.SourceID, Title: in.Title, Data: in.Data.JSON, Metadata: in.Metadata.JSON}
	var messages []opencode.MessageRecord
	for _, m := range collect(b, string(raw)) {
		messages = append(messages, record(m))
	}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		writeTo(b, io.Discard, session, messages...)
	}
}

func write(t testing.TB, s opencode.SessionRecord, messages ...opencode.MessageRecord) string {
	t.Helper()
	var out bytes.Buffer
	writeTo(t, &out, s, messages...)
	return out.String()
}

func writeTo(t testing.TB, out io.Writer, s opencode.SessionRecord, messages ...opencode.MessageRecord) {
	t.Helper()
	w := opencode.NewWriter(out)
	err := w.Session(s)
	for _, m := range messages {
		err = errors.Join(err, w.Message(m))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
