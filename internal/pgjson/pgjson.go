// Package pgjson makes any JSON text one that PostgreSQL's jsonb can hold, and turns it back.
//
// jsonb refuses the escapes \u0000 (SQLSTATE 22P05) and lone surrogates (22P02), in names as in values, and respells numbers:
// it prints no exponent (1e2 becomes 100) and no negative zero (-0.0 becomes 0.0); every other number keeps its spelling,
// trailing zeros included. All of it was observed on PostgreSQL 15.18, whose manual says as much in section 8.14, JSON Types.
//
// The strings are cured by [Escape], which uses U+0010 (DLE, data link escape) as its mark:
//
//	U+0000               U+0010 "0"
//	lone surrogate XXXX  U+0010 "uXXXX", in lower case
//	U+0010               U+0010 U+0010
//
// Numbers are cured by a second column: a text that jsonb would respell goes, escaped alike, to a column of type json or text
// too, which keeps it as it is. [Unescape] is for what either column prints.
package pgjson

import (
	"bytes"
	"iter"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
)

// Text is a JSON text that jsonb can hold.
type Text struct {
	JSON []byte
	// Respelled says that jsonb changes the spelling of a number in it, so that JSON has to be stored as json or text too.
	Respelled bool
}

// Escape checks raw, which must be one complete JSON value, and makes it a text for jsonb. Only the escapes of NUL, of lone
// surrogates and of U+0010 in strings change; everything else stays byte for byte, white space between tokens too, since that
// is the fastest and jsonb drops it. When nothing has to change, the result is raw itself, and nothing is allocated.
//
// Its errors are of type *[Error]: invalid JSON or UTF-8, a name that occurs twice in its object, nesting beyond [MaxDepth],
// a number of more than [MaxDigits] digits or with an exponent beyond ±[MaxExponent], more than 8,388,608 entries in one
// container, more than 268,435,455 bytes as jsonb (estimated from above: a few bytes for each entry), and data after the value.
func Escape(raw []byte) (Text, error) {
	s := getScanner(raw)
	defer putScanner(s)

	span, err := s.Value()
	if err == nil {
		err = s.End()
	}
	if err != nil {
		return Text{}, err
	}
	text := Text{JSON: raw, Respelled: span.Respelled()}
	if span.flags&(hasNUL|hasLone|hasDLE) != 0 {
		text.JSON = appendEscaped(make([]byte, 0, len(raw)+len(raw)/16), raw)
	}
	return text, nil
}

// Unescape turns back what [Escape] did, on JSON that a column printed (PostgreSQL prints U+0010 as \u0010, and
// takes it in no other form). A U+0010 that Escape cannot have written, in rows made by other hands, stays as it is. When there
// is no U+0010, the result is stored itself.
func Unescape(stored []byte) []byte {
	if !bytes.Contains(stored, []byte(mark)) {
		return stored
	}
	dst := make([]byte, 0, len(stored))
	for {
		i := bytes.IndexByte(stored, '\\')
		if i < 0 || i+2 > len(stored) {
			return append(dst, stored...)
		}
		dst = append(dst, stored[:i]...)
		stored = stored[i:]
		rest, marked := bytes.CutPrefix(stored, []byte(mark))
		switch {
		case !marked:
			dst = append(dst, stored[:2]...)
			stored = stored[2:]
		case bytes.HasPrefix(rest, []byte("0")):
			dst = append(dst, `\u0000`...)
			stored = rest[1:]
		case bytes.HasPrefix(rest, []byte(mark)):
			dst = append(dst, mark...)
			stored = rest[len(mark):]
		case isMarkedSurrogate(rest):
			dst = append(dst, '\\')
			dst = append(dst, rest[:5]...)
			stored = rest[5:]
		default:
			dst = append(dst, mark...)
			stored = rest
		}
	}
}

// isMarkedSurrogate reports whether b, which follows a mark, begins as Escape writes a lone surrogate.
func isMarkedSurrogate(b []byte) bool {
	if len(b) < 5 || b[0] != 'u' {
		return false
	}
	unit, ok := hex4(b[1:])
	return ok && (isHigh(unit) || isLow(unit))
}

// Clean returns what a text column can hold of a JSON string literal, which is given with its quotes and was checked before:
// each NUL and each lone surrogate becomes U+FFFD.
func Clean(literal []byte) string {
	if len(literal) < 2 {
		return ""
	}
	literal = literal[1 : len(literal)-1]
	if bytes.IndexByte(literal, '\\') < 0 {
		return clean(string(literal))
	}
	return clean(string(appendDecoded(nil, literal)))
}

// FindUnstorable returns the names and strings in raw, front to back, that hold NUL or a lone surrogate, which a text column
// refuses. raw was checked before: where it is no JSON, the search ends. A text without \u costs one search for that.
func FindUnstorable(raw []byte) iter.Seq[*Error] {
	return func(yield func(*Error) bool) {
		if bytes.Contains(raw, []byte(`\u`)) {
			s := NewBytesScanner(raw)
			_ = findUnstorable(s, yield)
		}
	}
}

// findUnstorable reads the next value. An error ends the search, also the one it returns when yield wants no more.
func findUnstorable(s *Scanner, yield func(*Error) bool) error {
	check := func(span Span, what string) error {
		var err *Error
		switch {
		case span.flags&hasNUL != 0:
			err = s.Fault(span.Start, what+" U+0000, which PostgreSQL cannot hold in text")
		case span.flags&hasLone != 0:
			err = s.Fault(span.Start, what+" half of a surrogate pair, which PostgreSQL cannot hold in text")
		default:
			return nil
		}
		if !yield(err) {
			return err
		}
		return nil
	}
	c, err := s.Peek()
	if err != nil {
		return err
	}
	switch c {
	case '{':
		_, err = s.Object(func(name Name) error {
			if err := check(name.Span, "has a name with"); err != nil {
				return err
			}
			return findUnstorable(s, yield)
		})
	case '[':
		_, err = s.Array(func(int) error { return findUnstorable(s, yield) })
	default:
		var span Span
		if span, err = s.Value(); err == nil {
			err = check(span, "holds")
		}
	}
	return err
}

// scanners keeps what the scanners of Escape have grown.
var scanners = sync.Pool{New: func() any { return new(Scanner) }}

func getScanner(text []byte) *Scanner {
	s := scanners.Get().(*Scanner)
	s.buf, s.limit = text, MaxDepth
	return s
}

func putScanner(s *Scanner) {
	const usual = 64 << 10 // bytes of names; what an unusual text needed is not worth keeping
	clear(s.frames)        // lets go of their maps
	next := Scanner{frames: s.frames[:0]}
	if cap(s.names) <= usual {
		next.names, next.ends = s.names[:0], s.ends[:0]
	}
	*s = next
	scanners.Put(s)
}

// mark is U+0010 as PostgreSQL prints it.
const mark = `\u0010`

// appendEscaped appends JSON text that was checked, escaped. There are backslashes in strings only.
func appendEscaped(dst, src []byte) []byte {
	for {
		i := bytes.IndexByte(src, '\\')
		if i < 0 {
			return append(dst, src...)
		}
		dst = append(dst, src[:i]...)
		src = src[i:]
		if src[1] != 'u' {
			dst = append(dst, src[:2]...)
			src = src[2:]
			continue
		}
		unit, _ := hex4(src[2:])
		size := 6
		switch {
		case unit == 0:
			dst = append(dst, mark+`0`...)
		case unit == dle:
			dst = append(dst, mark+mark...)
		case isHigh(unit) && followsLow(src[6:]):
			size = 12
			dst = append(dst, src[:size]...)
		case isHigh(unit) || isLow(unit):
			dst = append(dst, mark+`u`...)
			for _, digit := range src[2:size] {
				dst = append(dst, digit|0x20) // lower case
			}
		default:
			dst = append(dst, src[:size]...)
		}
		src = src[size:]
	}
}

// appendDecoded appends what stands between the quotes of a checked string literal, without its escapes. A lone surrogate
// becomes its three bytes in generalized UTF-8, so that different strings stay different.
func appendDecoded(dst, literal []byte) []byte {
	for {
		i := bytes.IndexByte(literal, '\\')
		if i < 0 || i+2 > len(literal) {
			return append(dst, literal...)
		}
		dst = append(dst, literal[:i]...)
		c := literal[i+1]
		literal = literal[i+2:]
		switch c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			unit, ok := hex4(literal)
			if !ok {
				return dst
			}
			literal = literal[4:]
			switch {
			case isHigh(unit) && followsLow(literal):
				low, _ := hex4(literal[2:])
				literal = literal[6:]
				dst = utf8.AppendRune(dst, utf16.DecodeRune(rune(unit), rune(low)))
			case isHigh(unit) || isLow(unit):
				dst = append(dst, 0xE0|byte(unit>>12), 0x80|byte(unit>>6)&0x3F, 0x80|byte(unit)&0x3F)
			default:
				dst = utf8.AppendRune(dst, rune(unit))
			}
		default:
			dst = append(dst, c)
		}
	}
}

// surrogateLen is the length of a surrogate in generalized UTF-8, in bytes.
const surrogateLen = 3

// isSurrogate reports whether s begins with a surrogate in generalized UTF-8.
func isSurrogate(s string) bool {
	return len(s) >= surrogateLen && s[0] == 0xED && s[1] >= 0xA0 && s[1] <= 0xBF && s[2] >= 0x80 && s[2] <= 0xBF
}

// followsLow reports whether b begins with the escape of a low surrogate.
func followsLow(b []byte) bool {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return false
	}
	unit, ok := hex4(b[2:])
	return ok && isLow(unit)
}

func isHigh(unit uint16) bool { return unit >= 0xD800 && unit < 0xDC00 }

func isLow(unit uint16) bool { return unit >= 0xDC00 && unit < 0xE000 }

// hex4 returns the number that the first four hex digits of b make.
func hex4(b []byte) (unit uint16, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		unit = unit<<4 | uint16(c)
	}
	return unit, true
}
