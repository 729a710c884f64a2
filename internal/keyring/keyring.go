// Package keyring encrypts small values with versioned keys: AES-256-GCM, bound to a context of the caller's choice.
//
// A key is written v<version>:<base64 of 32 bytes>. A ring is a list of them, separated by commas or line ends, and the first
// encrypts. What Seal makes is
//
//	1 byte    format: 1
//	12 bytes  nonce, random
//	n bytes   the value, encrypted
//	16 bytes  GCM's tag
//
// with the caller's context followed by the key's version (4 bytes, big-endian) as additional data. The version is not in the
// ciphertext: it is stored beside it, once. docs/secrets.md says what the context of which value is.
package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

const (
	keySize   = 32
	nonceSize = 12
	tagSize   = 16
	format    = 1

	// Overhead is by how many bytes a ciphertext is longer than its value.
	Overhead = 1 + nonceSize + tagSize
)

var (
	// ErrNoKey says that the ring does not hold the key of this version.
	ErrNoKey = errors.New("the key ring does not hold this key")
	// ErrNotAuthentic says that a ciphertext is not what Seal made with this key for this context: it was altered, or is
	// somebody else's.
	ErrNotAuthentic = errors.New("the ciphertext is not authentic")
)

// Fingerprint tells keys apart. It tells nothing of the key, which is 256 random bits.
type Fingerprint [sha256.Size]byte

// String is the fingerprint's beginning, as people compare it.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:8]) }

// Key is what may be known of a key.
type Key struct {
	Version     int32
	Fingerprint Fingerprint
}

// Ring holds keys. It is never changed, and prints as versions and fingerprints.
type Ring struct {
	keys  []Key // the first encrypts
	aeads map[int32]cipher.AEAD
}

var keyForm = regexp.MustCompile(`^v([1-9][0-9]*):(.*)$`)

// Parse reads keys as they are written in HUB_ENCRYPTION_KEYS or a file. Lines that begin with # are comments. Its errors name a
// key by its place, and never quote it.
func Parse(text string) (*Ring, error) {
	r := &Ring{aeads: map[int32]cipher.AEAD{}}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for entry := range strings.SplitSeq(line, ",") {
			if entry = strings.TrimSpace(entry); entry == "" {
				continue
			}
			if err := r.add(entry); err != nil {
				return nil, fmt.Errorf("key number %d: %w", len(r.keys)+1, err)
			}
		}
	}
	if len(r.keys) == 0 {
		return nil, errors.New("there is no key: make one with `hub keys generate`")
	}
	return r, nil
}

func (r *Ring) add(entry string) error {
	match := keyForm.FindStringSubmatch(entry)
	if match == nil {
		return errors.New("must be v<number>:<base64 of 32 bytes>, such as `hub keys generate` makes")
	}
	version, err := strconv.ParseInt(match[1], 10, 32)
	if err != nil {
		return fmt.Errorf("its version must be at most %d", math.MaxInt32)
	}
	secret, err := base64.StdEncoding.Strict().DecodeString(match[2])
	if err != nil || len(secret) != keySize {
		return fmt.Errorf("v%d must be followed by the base64 of %d bytes", version, keySize)
	}
	key := Key{Version: int32(version), Fingerprint: fingerprint(secret)}
	for _, other := range r.keys {
		if other.Version == key.Version {
			return fmt.Errorf("v%d is given twice", version)
		}
		if other.Fingerprint == key.Fingerprint {
			return fmt.Errorf("v%d is the same key as v%d", version, other.Version)
		}
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	r.keys = append(r.keys, key)
	r.aeads[key.Version] = aead
	return nil
}

func fingerprint(secret []byte) Fingerprint {
	return sha256.Sum256(append([]byte("hub/encryption-key\x00"), secret...))
}

// Generate makes a key as Parse reads it.
func Generate(version int32) string {
	secret := make([]byte, keySize)
	rand.Read(secret) // never fails: crypto/rand ends the program first
	return fmt.Sprintf("v%d:%s", version, base64.StdEncoding.EncodeToString(secret))
}

// Keys are what may be known of the keys; the first encrypts. A nil ring is empty.
func (r *Ring) Keys() []Key {
	if r == nil {
		return nil
	}
	return r.keys
}

// Primary is the version of the key that encrypts; 0 when the ring is empty.
func (r *Ring) Primary() int32 {
	if r == nil {
		return 0
	}
	return r.keys[0].Version
}

// Holds says whether the ring has the key of this version.
func (r *Ring) Holds(version int32) bool { return r != nil && r.aeads[version] != nil }

// Seal encrypts a value with the key of this version. Every call makes another ciphertext. With one key, random nonces are safe
// for 2^32 values (NIST SP 800-38D, 8.3): change keys before.
func (r *Ring) Seal(version int32, value, context []byte) ([]byte, error) {
	if !r.Holds(version) {
		return nil, fmt.Errorf("v%d: %w", version, ErrNoKey)
	}
	sealed := make([]byte, 1+nonceSize, Overhead+len(value))
	sealed[0] = format
	rand.Read(sealed[1:])
	return r.aeads[version].Seal(sealed, sealed[1:], value, additional(context, version)), nil
}

// Open decrypts what Seal made with the key of this version for this context. It fails with ErrNoKey or ErrNotAuthentic.
func (r *Ring) Open(version int32, sealed, context []byte) ([]byte, error) {
	if !r.Holds(version) {
		return nil, fmt.Errorf("v%d: %w", version, ErrNoKey)
	}
	if len(sealed) < Overhead || sealed[0] != format {
		return nil, ErrNotAuthentic
	}
	value, err := r.aeads[version].Open(nil, sealed[1:1+nonceSize], sealed[1+nonceSize:], additional(context, version))
	if err != nil {
		return nil, ErrNotAuthentic
	}
	return value, nil
}

func additional(context []byte, version int32) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, len(context)+4), context...), uint32(version))
}

// String names the ring's keys by version and fingerprint: "v2 (5f0c...), v1 (a1b2...)".
func (r *Ring) String() string {
	names := make([]string, len(r.Keys()))
	for i, key := range r.Keys() {
		names[i] = fmt.Sprintf("v%d (%s)", key.Version, key.Fingerprint)
	}
	return strings.Join(names, ", ")
}

// GoString is String, so that no spelling of a ring shows a key schedule.
func (r *Ring) GoString() string { return r.String() }
