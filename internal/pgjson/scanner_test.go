package pgjson_test

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/alkdev/hub/internal/pgjson"
)

// A text that comes in pieces is read like one in memory.
func TestScannerReadsPieces(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"07-unicode.json", "18-rare-part-types.json", "15-tree-root.json"} {
		raw := string(export(t, name))
		for _, text := range []string{
			raw, raw[:len(raw)/2], raw[:len(raw)-1] + "x", strings.Replace(raw, "time", "t\\ud83d\\ude0\u00e9\xff", 1),
			"[-12.50e+2,\"\\ud83d\\ude00é😀\",tru", "12", "12 ", "-", "[1.", "\"\xf0\x9f",
		} {
			inMemory := pgjson.NewBytesScanner([]byte(text))
			want, wantErr := inMemory.Value()
			inPieces := pgjson.NewScanner(iotest.OneByteReader(strings.NewReader(text)))
			got, err := inPieces.Value()
			if got != want || !reflect.DeepEqual(err, wantErr) {
				t.Errorf("%.50s...: got %v, %v; want %v, %v", text, got, err, want, wantErr)
			}
			if err == nil {
				if err, wantErr := inPieces.End(), inMemory.End(); !reflect.DeepEqual(err, wantErr) {
					t.Errorf("%.50s...: ends with %v, want %v", text, err, wantErr)
				}
			}
		}
	}
}

func TestScannerPassesOnReadErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, text := range []string{"", " ", "[1", `["a`, `["\u0`, `["\ud83d`, "[tr", "12", "\"\xf0\x9f", `{"a"`, `{"a":`, "[-", "[1]"} {
		s := pgjson.NewScanner(io.MultiReader(strings.NewReader(text), iotest.ErrReader(broken)))
		_, err := s.Value()
		if err == nil {
			err = s.End()
		}
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", text, err)
		}
	}
	s := pgjson.NewScanner(stuck{})
	if _, err := s.Value(); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// What was released does not stay in memory, and what was not can be had.
func TestScannerRelease(t *testing.T) {
	t.Parallel()
	const elem = `{"a":"` + "0123456789\\u0000" + `"},`
	s := pgjson.NewScanner(strings.NewReader("[" + strings.Repeat(elem, 100_000) + "null]"))
	_, err := s.Array(func(i int) error {
		s.Release()
		span, err := s.Value()
		if err != nil || i == 100_000 {
			return err
		}
		if got := string(s.Bytes(span)) + ","; got != elem {
			t.Fatalf("element %d is %s", i, got)
		}
		if got := string(s.AppendEscaped(nil, span)); got != `{"a":"0123456789\u00100"}` || !span.Unstorable() || span.Kind != '{' {
			t.Fatalf("element %d is %v, escaped %s", i, span, got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := s.Buffered(); n > 256<<10 {
		t.Errorf("%d bytes are kept", n)
	}
}

// Root makes the depth count anew.
func TestScannerRoot(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", pgjson.MaxDepth) + strings.Repeat("]", pgjson.MaxDepth)
	for _, tt := range []struct {
		root bool
		text string
		ok   bool
	}{{true, deep, true}, {true, "[" + deep + "]", false}, {false, deep, false}} {
		s := pgjson.NewBytesScanner([]byte(`{"a":` + tt.text + `}`))
		_, err := s.Object(func(pgjson.Name) error {
			if tt.root {
				s.Root()
			}
			_, err := s.Value()
			return err
		})
		if (err == nil) != tt.ok {
			t.Errorf("root %v, depth %d: %v", tt.root, strings.Count(tt.text, "["), err)
		}
	}
}
