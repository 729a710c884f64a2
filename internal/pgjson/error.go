package pgjson

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxPointer bounds an [Error.Pointer], in bytes: object names may be megabytes long.
const maxPointer = 1000

// Error says where a JSON text is at fault, and how.
type Error struct {
	// Pointer names the value at fault (RFC 6901; "" is the whole text). A member that is missing is named as if it were there.
	// What no text column can hold in a name appears as U+FFFD; where names are so long that the pointer would pass 1000 bytes,
	// it names the innermost value around the fault that fits.
	Pointer string
	// Offset is where the fault was seen, in bytes from the start of the text.
	Offset int64
	// Message says what is wrong, as the rest of a sentence that begins with the value.
	Message string
}

// Error returns the pointer, the offset and the message in one line.
func (e *Error) Error() string {
	pointer := e.Pointer
	if pointer == "" {
		pointer = "JSON text"
	}
	return fmt.Sprintf("%s (byte %d): %s", pointer, e.Offset, e.Message)
}

var pointerEscapes = strings.NewReplacer("~", "~0", "/", "~1")

// appendToken appends a reference token to a pointer, and reports whether it fits.
func appendToken(pointer []byte, token string) ([]byte, bool) {
	if len(pointer)+1+len(token) > maxPointer {
		return pointer, false
	}
	token = pointerEscapes.Replace(clean(token))
	if len(pointer)+1+len(token) > maxPointer {
		return pointer, false
	}
	return append(append(pointer, '/'), token...), true
}

// clean replaces NUL and every ill-formed byte sequence, which is how [appendDecoded] spells a lone surrogate, by U+FFFD.
func clean(s string) string {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == 0:
			r = utf8.RuneError
		case r == utf8.RuneError && size == 1 && isSurrogate(s[i:]):
			size = surrogateLen
		}
		b.WriteRune(r)
		i += size
	}
	return b.String()
}
