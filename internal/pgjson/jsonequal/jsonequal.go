// Package jsonequal compares JSON texts value by value, for tests. It shares no code with the packages that it tests.
package jsonequal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/go-json-experiment/json/jsontext"
)

// Difference is a value in which two texts differ.
type Difference struct {
	// Pointer names the value (RFC 6901; "" is the whole text).
	Pointer string
	// A and B say what stands there in either text, shortened.
	A, B string
}

// String returns all of it in one line.
func (d *Difference) String() string { return fmt.Sprintf("at %q: %s != %s", d.Pointer, d.A, d.B) }

// Diff returns the first difference between two JSON texts in the order of a, or nil. Two values are equal when they are
// the same literal, numbers of the same spelling, strings of the same UTF-16 code units (lone surrogates included; how they are
// escaped does not matter), arrays of equal elements, or objects with equal members in any order. A text that is no JSON, or
// that has a name twice in an object, differs from everything.
func Diff(a, b []byte) *Difference {
	va, errA := parse(a)
	vb, errB := parse(b)
	if errA != nil || errB != nil {
		return &Difference{A: describe(va, errA), B: describe(vb, errB)}
	}
	return diff("", va, vb)
}

// value is a parsed JSON value.
type value struct {
	text    string // of a literal or number, as spelled; of a string, its literal with every code unit escaped
	kind    jsontext.Kind
	names   []string // in order
	members map[string]*value
	elems   []*value
}

func diff(pointer string, a, b *value) *Difference {
	if a.kind != b.kind || a.text != b.text || len(a.elems) != len(b.elems) {
		return &Difference{Pointer: pointer, A: describe(a, nil), B: describe(b, nil)}
	}
	for _, name := range a.names {
		at := pointer + "/" + token(name)
		if b.members[name] == nil {
			return &Difference{Pointer: at, A: describe(a.members[name], nil), B: "nothing"}
		}
		if d := diff(at, a.members[name], b.members[name]); d != nil {
			return d
		}
	}
	for _, name := range b.names {
		if a.members[name] == nil {
			return &Difference{Pointer: pointer + "/" + token(name), A: "nothing", B: describe(b.members[name], nil)}
		}
	}
	for i := range a.elems {
		if d := diff(pointer+"/"+strconv.Itoa(i), a.elems[i], b.elems[i]); d != nil {
			return d
		}
	}
	return nil
}

func describe(v *value, err error) string {
	const longest = 100
	switch {
	case err != nil:
		return err.Error()
	case v.kind == '{':
		return fmt.Sprintf("object of %d", len(v.names))
	case v.kind == '[':
		return fmt.Sprintf("array of %d", len(v.elems))
	case len(v.text) > longest:
		return v.text[:longest] + fmt.Sprintf("... (%d bytes)", len(v.text))
	}
	return v.text
}

func parse(text []byte) (*value, error) {
	// The decoder would take different lone surrogates for the same name, hence names are compared here.
	dec := jsontext.NewDecoder(bytes.NewReader(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	v, err := read(dec)
	if err != nil {
		return nil, err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the value")
	}
	return v, nil
}

func read(dec *jsontext.Decoder) (*value, error) {
	v := &value{kind: dec.PeekKind()}
	if v.kind != '{' && v.kind != '[' {
		raw, err := dec.ReadValue()
		v.text = string(raw)
		if err == nil && v.kind == '"' {
			v.text = escapeAll(v.text)
		}
		return v, err
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	v.members = map[string]*value{}
	for k := dec.PeekKind(); k != '}' && k != ']'; k = dec.PeekKind() {
		elem, err := read(dec)
		if err != nil {
			return nil, err
		}
		if v.kind == '[' {
			v.elems = append(v.elems, elem)
			continue
		}
		if v.members[elem.text] != nil {
			return nil, fmt.Errorf("name %s occurs twice", elem.text)
		}
		v.names = append(v.names, elem.text)
		if v.members[elem.text], err = read(dec); err != nil {
			return nil, err
		}
	}
	_, err := dec.ReadToken()
	return v, err
}

var named = map[byte]uint16{'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', '"': '"', '\\': '\\', '/': '/'}

// units returns the UTF-16 code units of a valid literal. Bytes that are no UTF-8 count as U+FFFD.
func units(literal string) []uint16 {
	var units []uint16
	for s := literal[1 : len(literal)-1]; s != ""; {
		switch {
		case s[0] != '\\':
			i := strings.IndexByte(s, '\\')
			if i < 0 {
				i = len(s)
			}
			units = append(units, utf16.Encode([]rune(s[:i]))...)
			s = s[i:]
		case s[1] == 'u':
			unit, _ := strconv.ParseUint(s[2:6], 16, 16)
			units = append(units, uint16(unit))
			s = s[6:]
		default:
			units = append(units, named[s[1]])
			s = s[2:]
		}
	}
	return units
}

// escapeAll returns a literal in the one spelling that all its spellings have in common: printable ASCII but for the quote and
// the backslash stands for itself, and everything else is \uXXXX.
func escapeAll(literal string) string {
	b := []byte{'"'}
	for _, u := range units(literal) {
		if u >= ' ' && u <= '~' && u != '"' && u != '\\' {
			b = append(b, byte(u))
		} else {
			b = fmt.Appendf(b, `\u%04x`, u)
		}
	}
	return string(append(b, '"'))
}

// token returns a name, spelled by escapeAll, as a reference token.
func token(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name[1 : len(name)-1])
}
