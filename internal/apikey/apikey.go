// Package apikey makes API keys and tells their form: hub_, 43 base62 digits of 256 random bits, and 6 base62 digits of the
// CRC-32 (IEEE) of all that. Secret scanners can match it, and a mistyped key is refused without asking the database.
package apikey

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"math/big"
	"strings"
)

const (
	prefix         = "hub_"
	digits         = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	secretDigits   = 43 // 62^43 > 2^256
	checksumDigits = 6  // 62^6 > 2^32
)

// New returns a fresh key.
func New() string {
	var secret [32]byte
	rand.Read(secret[:]) // never fails
	body := prefix + base62(new(big.Int).SetBytes(secret[:]), secretDigits)
	return body + checksum(body)
}

// Issue returns a fresh key and its Hash.
func Issue() (key string, hash []byte) {
	key = New()
	hash, err := Hash(key)
	if err != nil {
		panic(err) // New made it
	}
	return key, hash
}

// Hash returns what the database knows of a key: its SHA-256. The error says that the key was mistyped or is none.
//
// A fast hash is right here (W13): a key has 256 random bits, so there is nothing to guess, and it is checked with every request.
func Hash(key string) ([]byte, error) {
	body, ok := strings.CutPrefix(key, prefix)
	if !ok || len(body) != secretDigits+checksumDigits || key[len(key)-checksumDigits:] != checksum(key[:len(key)-checksumDigits]) {
		return nil, fmt.Errorf("this is no key of hub: %q and %d characters, the last %d of them a checksum, are expected", prefix, secretDigits+checksumDigits, checksumDigits)
	}
	sum := sha256.Sum256([]byte(key))
	return sum[:], nil
}

func checksum(body string) string {
	return base62(big.NewInt(int64(crc32.ChecksumIEEE([]byte(body)))), checksumDigits)
}

// base62 spells n with exactly width digits.
func base62(n *big.Int, width int) string {
	text := make([]byte, width)
	base, digit := big.NewInt(int64(len(digits))), new(big.Int)
	for i := width - 1; i >= 0; i-- {
		n.DivMod(n, base, digit)
		text[i] = digits[digit.Int64()]
	}
	return string(text)
}
