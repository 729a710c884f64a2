package pgjson

// Buffered returns how many bytes the scanner keeps room for.
func (s *Scanner) Buffered() int { return cap(s.buf) }
