package pgjson

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math/bits"
	"slices"
	"strconv"
	"unicode/utf8"
)

// What a value may be at most. PostgreSQL 15 itself stops at a nesting of 10,000 to 20,000 (its stack), at numbers of 131,072
// digits before and 16,383 behind the point, at 268,435,455 bytes in one string or container, and at 16,777,216 elements or
// 8,388,608 members (there with an internal error, XX000).
const (
	MaxDepth    = 256  // arrays and objects within each other
	MaxDigits   = 1000 // of a number, before its exponent
	MaxExponent = 400  // of a number, either way

	maxEntries = 1 << 23   // members of an object, elements of an array
	maxSize    = 1<<28 - 1 // bytes as jsonb, estimated from above
)

// dle is U+0010, the mark of Escape.
const dle = 0x10

// flags say what a stretch of JSON text holds.
type flags uint8

const (
	hasNUL       flags = 1 << iota // U+0000
	hasLone                        // a surrogate without its other half
	hasDLE                         // U+0010, which Escape doubles
	hasRespelled                   // a number that jsonb spells differently
	hasEscapes                     // a backslash
)

// Span is a stretch of the scanned text: a value, an object's name, or a member.
type Span struct {
	Start, End int64 // in bytes from the start of the text
	// Kind is the first byte of a value, one of '{', '[', '"', 't', 'f', 'n'; for every number it is '0'.
	Kind  byte
	flags flags
}

// Unstorable reports whether a string within, a name or a value, holds NUL or a lone surrogate.
func (s Span) Unstorable() bool { return s.flags&(hasNUL|hasLone) != 0 }

// Respelled reports whether jsonb would spell a number within differently.
func (s Span) Respelled() bool { return s.flags&hasRespelled != 0 }

// Through returns the stretch from the start of s to the end of last.
func (s Span) Through(last Span) Span {
	return Span{Start: s.Start, End: last.End, Kind: s.Kind, flags: s.flags | last.flags}
}

// Name is the name of an object's member.
type Name struct {
	Span
	// Text is the name without its escapes; a lone surrogate is spelled as its three bytes in generalized UTF-8. It is valid
	// until the scanner is used again.
	Text []byte
}

// Scanner reads one JSON text from front to back and checks it on the way: syntax (RFC 8259), UTF-8, names that occur once per
// object, and the limits of this package. The caller walks the text with Object and Array and takes what it wants with Value;
// every method that reads fails with an *[Error] at the first fault, without reading on, or with the reader's own error.
type Scanner struct {
	src   io.Reader // nil when all of the text is in buf
	err   error     // of src; io.EOF at its end
	buf   []byte
	pos   int   // of the next byte, in buf
	kept  int   // bytes of buf before this one may be dropped
	base  int64 // offset of buf[0] in the text
	limit int   // of len(frames)
	size  int64 // as jsonb, since Root
	flags flags // of the innermost open container

	frames []frame
	// The names of all open objects, end to end: they find duplicates and make pointers, long after buf has moved on.
	names []byte
	ends  []int
}

// frame is an open object or array.
type frame struct {
	kind   byte // { or [
	inside bool // its current member or element is being read, and so is part of the pointer
	count  int  // of members or elements, the current one included
	first  int  // index in ends of its first name
	large  map[uint64]struct{}
}

// NewScanner returns a Scanner that reads from r, in pieces of at least 4 kB.
func NewScanner(r io.Reader) *Scanner { return &Scanner{src: r, limit: MaxDepth} }

// NewBytesScanner returns a Scanner of a text that is in memory.
func NewBytesScanner(text []byte) *Scanner { return &Scanner{buf: text, limit: MaxDepth} }

// Offset returns the position of the next byte, in bytes from the start of the text.
func (s *Scanner) Offset() int64 { return s.base + int64(s.pos) }

// Release lets go of what has been read: from then on Bytes reaches back to here only. Without it the whole text is kept.
func (s *Scanner) Release() { s.kept = s.pos }

// Bytes returns the text of a span, valid until the scanner reads on.
func (s *Scanner) Bytes(span Span) []byte { return s.buf[span.Start-s.base : span.End-s.base] }

// AppendEscaped appends the text of a span as [Escape] changes it.
func (s *Scanner) AppendEscaped(dst []byte, span Span) []byte {
	if span.flags&(hasNUL|hasLone|hasDLE) == 0 {
		return append(dst, s.Bytes(span)...)
	}
	return appendEscaped(dst, s.Bytes(span))
}

// Root makes the next value one that is stored by itself: the limits of depth and size count from it.
func (s *Scanner) Root() {
	s.limit = len(s.frames) + MaxDepth
	s.size = 0
}

// Fault returns an error about the value that is being read, or about what lies at the given path below it.
func (s *Scanner) Fault(offset int64, message string, path ...string) *Error {
	var pointer []byte
	fits := true
	for i := 0; i < len(s.frames) && fits; i++ {
		f := &s.frames[i]
		switch {
		case !f.inside:
		case f.kind == '[':
			pointer, fits = appendToken(pointer, strconv.Itoa(f.count-1))
		default:
			pointer, fits = appendToken(pointer, string(s.name(f.first+f.count-1)))
		}
	}
	for i := 0; i < len(path) && fits; i++ {
		pointer, fits = appendToken(pointer, path[i])
	}
	return &Error{Pointer: string(pointer), Offset: offset, Message: message}
}

// End checks that nothing but white space follows.
func (s *Scanner) End() error {
	switch {
	case s.skipSpace():
		return s.Fault(s.Offset(), "is followed by more data")
	case s.err != nil && !errors.Is(s.err, io.EOF):
		return s.truncated()
	}
	return nil
}

// Peek returns the first byte of the next value, and does not read it.
func (s *Scanner) Peek() (byte, error) { return s.next() }

// Value reads the next value, whatever it is.
func (s *Scanner) Value() (Span, error) {
	c, err := s.next()
	if err != nil {
		return Span{}, err
	}
	span := Span{Start: s.Offset(), Kind: c}
	switch {
	case c == '{':
		return s.Object(nil)
	case c == '[':
		return s.Array(nil)
	case c == '"':
		span.flags, err = s.str()
	case c == '-' || isDigit(c):
		span.Kind = '0'
		span.flags, err = s.number()
	case c == 't':
		err = s.word("true")
	case c == 'f':
		err = s.word("false")
	case c == 'n':
		err = s.word("null")
	default:
		err = s.Fault(span.Start, "is no JSON value: it begins with "+show(c))
	}
	if err != nil {
		return Span{}, err
	}
	span.End = s.Offset()
	s.flags |= span.flags
	return span, s.grow(entrySize + span.End - span.Start)
}

// Object reads an object. It calls member with every name; member must read the value, by one call of Value, Object or Array.
// When member is nil, the values are read over.
func (s *Scanner) Object(member func(Name) error) (Span, error) {
	span, outer, err := s.open('{', "an object")
	if err != nil {
		return Span{}, err
	}
	c, err := s.next()
	for done := c == '}'; err == nil && !done; {
		var name Name
		if name, err = s.nextName(); err != nil {
			break
		}
		if member == nil {
			_, err = s.Value()
		} else {
			err = member(name)
		}
		if err == nil {
			done, err = s.separator('}')
		}
	}
	if err != nil {
		return Span{}, err
	}
	return s.close(span, outer), nil
}

// Array reads an array. It calls element with every index from 0; element must read the value, by one call of Value, Object or
// Array. When element is nil, the values are read over.
func (s *Scanner) Array(element func(int) error) (Span, error) {
	span, outer, err := s.open('[', "an array")
	if err != nil {
		return Span{}, err
	}
	c, err := s.next()
	for done := c == ']'; err == nil && !done; {
		var index int
		if index, err = s.enter(); err != nil {
			break
		}
		if element == nil {
			_, err = s.Value()
		} else {
			err = element(index)
		}
		if err == nil {
			done, err = s.separator(']')
		}
	}
	if err != nil {
		return Span{}, err
	}
	return s.close(span, outer), nil
}

// open reads the bracket that begins an object or an array. It returns the flags of what is around it, for close.
func (s *Scanner) open(kind byte, what string) (Span, flags, error) {
	c, err := s.next()
	if err != nil {
		return Span{}, 0, err
	}
	if c != kind {
		return Span{}, 0, s.Fault(s.Offset(), "must be "+what)
	}
	if len(s.frames) >= s.limit {
		return Span{}, 0, s.Fault(s.Offset(), fmt.Sprintf("is nested deeper than %d", MaxDepth))
	}
	if err := s.grow(containerSize); err != nil {
		return Span{}, 0, err
	}
	span := Span{Start: s.Offset(), Kind: kind}
	outer := s.flags
	s.flags = 0
	s.pos++
	s.frames = append(s.frames, frame{kind: kind, first: len(s.ends)})
	return span, outer, nil
}

// close reads the bracket that ends the innermost object or array.
func (s *Scanner) close(span Span, outer flags) Span {
	s.pos++
	first := s.frames[len(s.frames)-1].first
	s.names = s.names[:s.nameStart(first)]
	s.ends = s.ends[:first]
	s.frames[len(s.frames)-1] = frame{} // lets go of its map
	s.frames = s.frames[:len(s.frames)-1]
	span.End = s.Offset()
	span.flags = s.flags
	s.flags |= outer
	return span
}

// enter begins the next member or element of the innermost container, and returns its index.
func (s *Scanner) enter() (int, error) {
	f := &s.frames[len(s.frames)-1]
	f.count++
	f.inside = true
	if f.count > maxEntries {
		return 0, s.Fault(s.Offset(), fmt.Sprintf("is one of more than %d entries", maxEntries))
	}
	return f.count - 1, nil
}

// separator ends a member or element: it reads a comma, or reports that the closing bracket is next.
func (s *Scanner) separator(end byte) (done bool, err error) {
	s.frames[len(s.frames)-1].inside = false
	c, err := s.next()
	switch {
	case err != nil:
		return false, err
	case c == ',':
		s.pos++
		return false, nil
	case c == end:
		return true, nil
	}
	return false, s.Fault(s.Offset(), fmt.Sprintf("has %s where a comma or %s must be", show(c), show(end)))
}

// nextName reads the name of a member, and the colon behind it.
func (s *Scanner) nextName() (Name, error) {
	c, err := s.next()
	if err != nil {
		return Name{}, err
	}
	if c != '"' {
		return Name{}, s.Fault(s.Offset(), fmt.Sprintf("has %s where a name must be", show(c)))
	}
	span := Span{Start: s.Offset(), Kind: c}
	if span.flags, err = s.str(); err != nil {
		return Name{}, err
	}
	span.End = s.Offset()
	s.flags |= span.flags

	text := s.Bytes(span)
	text = text[1 : len(text)-1]
	if span.flags&hasEscapes == 0 {
		s.names = append(s.names, text...)
	} else {
		s.names = appendDecoded(s.names, text)
	}
	s.ends = append(s.ends, len(s.names))
	if _, err := s.enter(); err != nil {
		return Name{}, err
	}
	if s.isDuplicate() {
		return Name{}, s.Fault(span.Start, "has a name that occurs twice in its object")
	}
	if err := s.grow(entrySize + span.End - span.Start); err != nil {
		return Name{}, err
	}
	if c, err = s.next(); err != nil {
		return Name{}, err
	}
	if c != ':' {
		return Name{}, s.Fault(s.Offset(), fmt.Sprintf("has %s where a colon must be", show(c)))
	}
	s.pos++
	return Name{Span: span, Text: s.name(len(s.ends) - 1)}, nil
}

// name returns the i-th of the names that are remembered.
func (s *Scanner) name(i int) []byte { return s.names[s.nameStart(i):s.ends[i]] }

func (s *Scanner) nameStart(i int) int {
	if i == 0 {
		return 0
	}
	return s.ends[i-1]
}

var nameSeed = maphash.MakeSeed()

// isDuplicate reports whether the newest name is in its object already. Small objects are searched; the names of large ones are
// hashed, and searched only for a hash that has been met.
func (s *Scanner) isDuplicate() bool {
	const small = 32
	f := &s.frames[len(s.frames)-1]
	name := s.name(len(s.ends) - 1)
	if f.count > small {
		if f.large == nil {
			f.large = make(map[uint64]struct{}, 4*small)
			for i := f.first; i < len(s.ends)-1; i++ {
				f.large[maphash.Bytes(nameSeed, s.name(i))] = struct{}{}
			}
		}
		hash := maphash.Bytes(nameSeed, name)
		if _, met := f.large[hash]; !met {
			f.large[hash] = struct{}{}
			return false
		}
	}
	start := s.nameStart(f.first)
	for _, end := range s.ends[f.first : len(s.ends)-1] {
		if end-start == len(name) && bytes.Equal(s.names[start:end], name) {
			return true
		}
		start = end
	}
	return false
}

// str reads a string, whose opening quote is next.
func (s *Scanner) str() (flags, error) {
	var found flags
	s.pos++
	for {
		s.pos += plainPrefix(s.buf[s.pos:])
		if s.pos == len(s.buf) {
			if !s.more() {
				return 0, s.truncated()
			}
			continue
		}
		switch c := s.buf[s.pos]; {
		case c == '"':
			s.pos++
			return found, nil
		case c == '\\':
			f, err := s.escape()
			if err != nil {
				return 0, err
			}
			found |= f | hasEscapes
		case c < ' ':
			return 0, s.Fault(s.Offset(), fmt.Sprintf("has a control character (U+%04X) that is not escaped", c))
		default:
			if err := s.runes(); err != nil {
				return 0, err
			}
		}
	}
}

// runes reads characters beyond ASCII. The first one is next.
func (s *Scanner) runes() error {
	for {
		for s.pos < len(s.buf) && s.buf[s.pos] >= utf8.RuneSelf {
			_, size := utf8.DecodeRune(s.buf[s.pos:])
			if size == 1 {
				break // ill-formed, or incomplete
			}
			s.pos += size
		}
		switch {
		case s.pos == len(s.buf) || s.buf[s.pos] < utf8.RuneSelf:
			return nil
		case utf8.FullRune(s.buf[s.pos:]):
			return s.Fault(s.Offset(), "is not valid UTF-8")
		case !s.more():
			return s.truncated()
		}
	}
}

// escape reads an escape sequence, whose backslash is next, or two that make a surrogate pair.
func (s *Scanner) escape() (flags, error) {
	if !s.need(2) {
		return 0, s.truncated()
	}
	switch s.buf[s.pos+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.pos += 2
		return 0, nil
	case 'u':
	default:
		return 0, s.Fault(s.Offset(), "has an unknown escape sequence")
	}
	if !s.need(6) {
		return 0, s.truncated()
	}
	unit, ok := hex4(s.buf[s.pos+2:])
	if !ok {
		return 0, s.Fault(s.Offset(), `has a \u without four hex digits`)
	}
	var found flags
	size := 6
	switch {
	case unit == 0:
		found = hasNUL
	case unit == dle:
		found = hasDLE
	case isHigh(unit):
		s.need(12) // where the text ends before, the string is truncated anyway
		if followsLow(s.buf[s.pos+6:]) {
			size = 12
		} else {
			found = hasLone
		}
	case isLow(unit):
		found = hasLone
	}
	s.pos += size
	return found, nil
}

// number reads a number, whose minus or first digit is next.
func (s *Scanner) number() (flags, error) {
	start := s.Offset()
	negative := s.skip('-')
	leadingZero := s.at() == '0'
	digits, zero, err := s.digits(start, MaxDigits)
	if err != nil {
		return 0, err
	}
	if leadingZero && digits > 1 {
		return 0, s.Fault(start, "is a number with a leading zero")
	}
	if s.skip('.') {
		_, allZero, err := s.digits(start, MaxDigits-digits)
		if err != nil {
			return 0, err
		}
		zero = zero && allZero
	}
	if !s.skip('e') && !s.skip('E') {
		if negative && zero {
			return hasRespelled, nil // -0.0 becomes 0.0
		}
		return 0, nil
	}
	if !s.skip('+') {
		s.skip('-')
	}
	exponent := s.Offset()
	// Leading zeros aside, MaxExponent has three digits: whatever has more of either is refused.
	n, _, err := s.digits(start, MaxDigits)
	if err != nil {
		return 0, err
	}
	text := s.Bytes(Span{Start: exponent, End: exponent + int64(n)})
	if e, err := strconv.Atoi(string(text)); err != nil || e > MaxExponent {
		return 0, s.Fault(start, fmt.Sprintf("is a number whose exponent is beyond ±%d", MaxExponent))
	}
	return hasRespelled, nil
}

// digits reads one or more digits, of a number that began at start, and reports whether all were 0.
func (s *Scanner) digits(start int64, limit int) (n int, zero bool, err error) {
	zero = true
	for ; isDigit(s.at()); n++ {
		if n == limit {
			return 0, false, s.Fault(start, fmt.Sprintf("is a number of more than %d digits", MaxDigits))
		}
		zero = zero && s.buf[s.pos] == '0'
		s.pos++
	}
	switch {
	case n > 0:
		return n, zero, nil
	case s.pos == len(s.buf):
		return 0, false, s.truncated()
	}
	return 0, false, s.Fault(s.Offset(), fmt.Sprintf("is a number with %s where a digit must be", show(s.buf[s.pos])))
}

// word reads true, false or null.
func (s *Scanner) word(word string) error {
	s.need(len(word))
	n := min(len(word), len(s.buf)-s.pos)
	if string(s.buf[s.pos:s.pos+n]) != word[:n] {
		return s.Fault(s.Offset(), "is no JSON value: "+word+" was expected")
	}
	if n < len(word) {
		return s.truncated()
	}
	s.pos += n
	return nil
}

// at returns the next byte, or 0 at the end of the text.
func (s *Scanner) at() byte {
	if s.pos < len(s.buf) || s.more() {
		return s.buf[s.pos]
	}
	return 0
}

// skip reads the next byte if it is c.
func (s *Scanner) skip(c byte) bool {
	if s.at() != c {
		return false
	}
	s.pos++
	return true
}

// next reads over white space and returns the byte behind it, which it does not read.
func (s *Scanner) next() (byte, error) {
	if !s.skipSpace() {
		return 0, s.truncated()
	}
	return s.buf[s.pos], nil
}

// skipSpace reads over white space, and reports whether anything is behind it.
func (s *Scanner) skipSpace() bool {
	for {
		for ; s.pos < len(s.buf); s.pos++ {
			switch s.buf[s.pos] {
			case ' ', '\n', '\r', '\t':
			default:
				return true
			}
		}
		if !s.more() {
			return false
		}
	}
}

// need tries to have n bytes in buf behind pos, and reports whether it has.
func (s *Scanner) need(n int) bool {
	for len(s.buf)-s.pos < n {
		if !s.more() {
			return false
		}
	}
	return true
}

// more appends to buf what the reader gives next. It reports whether that was anything; s.err says why not.
func (s *Scanner) more() bool {
	const first, least = 16 << 10, 4 << 10
	if s.src == nil || s.err != nil {
		return false
	}
	if s.kept > 0 {
		s.buf = s.buf[:copy(s.buf, s.buf[s.kept:])]
		s.base += int64(s.kept)
		s.pos -= s.kept
		s.kept = 0
	}
	if cap(s.buf)-len(s.buf) < least {
		s.buf = slices.Grow(s.buf, max(first, len(s.buf)))
	}
	for range 100 {
		n, err := s.src.Read(s.buf[len(s.buf):cap(s.buf)])
		s.buf = s.buf[:len(s.buf)+n]
		s.err = err
		if n > 0 {
			return true
		}
		if err != nil {
			return false
		}
	}
	s.err = io.ErrNoProgress
	return false
}

// truncated returns the error for a text that ends too early, or cannot be read on.
func (s *Scanner) truncated() error {
	if s.err != nil && !errors.Is(s.err, io.EOF) {
		return fmt.Errorf("read JSON: %w", s.err)
	}
	return s.Fault(s.base+int64(len(s.buf)), "is cut short: the text ends within it")
}

// Bytes that an entry takes in jsonb beside its own, at most: its JEntry, and for a number varlena header, numeric header,
// padding and a digit of base 10000; for a container its JEntry, header and padding.
const entrySize, containerSize = 18, 12

// grow counts what the current value takes as jsonb.
func (s *Scanner) grow(n int64) error {
	if s.size += n; s.size > maxSize {
		return s.Fault(s.Offset(), fmt.Sprintf("is beyond the %d bytes that jsonb can hold", maxSize))
	}
	return nil
}

// plainPrefix returns how many bytes at the start of b stand for themselves in a string: printable ASCII without quote and
// backslash. It looks at eight at a time.
func plainPrefix(b []byte) int {
	n := 0
	for ; len(b)-n >= 8; n += 8 {
		if special := specialBytes(binary.LittleEndian.Uint64(b[n:])); special != 0 {
			return n + bits.TrailingZeros64(special)/8
		}
	}
	for n < len(b) && b[n] >= ' ' && b[n] < utf8.RuneSelf && b[n] != '"' && b[n] != '\\' {
		n++
	}
	return n
}

// specialBytes sets the top bit of the first byte that is not plain; those behind it are not to be relied on.
func specialBytes(w uint64) uint64 {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	quote, slash := w^(ones*'"'), w^(ones*'\\')
	return (w | (w-ones*' ')&^w | (quote-ones)&^quote | (slash-ones)&^slash) & tops
}

// show returns c for a message.
func show(c byte) string {
	if c < utf8.RuneSelf {
		return strconv.QuoteRune(rune(c))
	}
	return fmt.Sprintf("byte 0x%02X", c)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
