package passkeys_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"testing"
)

// Flags of authenticator data (WebAuthn section 6.1).
const (
	userPresent    = 0x01
	userVerified   = 0x04
	backupEligible = 0x08
	backedUp       = 0x10
	attested       = 0x40
)

// device is an authenticator in software with one ES256 passkey, and the browser or system around it. Its fields may be
// changed to make it lie.
type device struct {
	key    *ecdsa.PrivateKey
	id     []byte
	handle []byte

	rpID, origin string
	flags        byte
	count        uint32
	packed       bool // self attestation instead of none

	typeCreate, typeGet string
	tamper              func(authData, clientData, signature []byte)
}

func newDevice(t testing.TB) *device {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{
		key: key, id: make([]byte, 32), rpID: rpID, origin: origin, flags: userPresent | userVerified | backupEligible | backedUp,
		typeCreate: "webauthn.create", typeGet: "webauthn.get",
	}
	_, _ = rand.Read(d.id)
	return d
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (d *device) clientData(t testing.TB, kind, challenge string) []byte {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": d.origin, "crossOrigin": false})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (d *device) authData(flags byte) []byte {
	hash := sha256.Sum256([]byte(d.rpID))
	return binary.BigEndian.AppendUint32(append(hash[:], flags), d.count)
}

func (d *device) sign(t testing.TB, authData, clientData []byte) []byte {
	t.Helper()
	hash := sha256.Sum256(clientData)
	digest := sha256.Sum256(append(append([]byte{}, authData...), hash[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, d.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// cborBytes is a byte string of CBOR (RFC 8949) of up to 65,535 bytes, cborText a text of up to 23.
func cborBytes(b []byte) []byte {
	return append([]byte{0x59, byte(len(b) >> 8), byte(len(b))}, b...)
}

func cborText(s string) []byte { return append([]byte{0x60 + byte(len(s))}, s...) }

// create answers options of a registration, as navigator.credentials.create does.
func (d *device) create(t testing.TB, options map[string]any) map[string]any {
	t.Helper()
	handle, err := base64.RawURLEncoding.DecodeString(options["user"].(map[string]any)["id"].(string))
	if err != nil {
		t.Fatal(err)
	}
	d.handle = handle
	point, err := d.key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	cose := append([]byte{0xa5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21, 0x58, 0x20}, point[1:33]...) // RFC 9053 section 7.1.1
	cose = append(append(cose, 0x22, 0x58, 0x20), point[33:]...)
	authData := append(d.authData(d.flags|attested), make([]byte, 16)...)
	authData = binary.BigEndian.AppendUint16(authData, uint16(len(d.id)))
	authData = append(append(authData, d.id...), cose...)
	clientData := d.clientData(t, d.typeCreate, options["challenge"].(string))
	object := append([]byte{0xa3}, cborText("fmt")...)
	if d.packed {
		object = append(append(object, cborText("packed")...), cborText("attStmt")...)
		object = append(append(object, 0xa2), cborText("alg")...)
		object = append(append(object, 0x26), cborText("sig")...)
		signature := d.sign(t, authData, clientData)
		if d.tamper != nil {
			d.tamper(authData, clientData, signature)
		}
		object = append(object, cborBytes(signature)...)
	} else {
		object = append(append(append(object, cborText("none")...), cborText("attStmt")...), 0xa0)
	}
	object = append(append(object, cborText("authData")...), cborBytes(authData)...)
	return map[string]any{
		"id": b64(d.id), "rawId": b64(d.id), "type": "public-key", "clientExtensionResults": map[string]any{"credProps": map[string]any{"rk": true}},
		"authenticatorAttachment": "platform",
		"response": map[string]any{
			"clientDataJSON": b64(clientData), "attestationObject": b64(object), "transports": []string{"internal", "hybrid"},
		},
	}
}

// get answers options of a sign-in, as navigator.credentials.get does.
func (d *device) get(t testing.TB, options map[string]any) map[string]any {
	t.Helper()
	authData := d.authData(d.flags)
	clientData := d.clientData(t, d.typeGet, options["challenge"].(string))
	signature := d.sign(t, authData, clientData)
	if d.tamper != nil {
		d.tamper(authData, clientData, signature)
	}
	return map[string]any{
		"id": b64(d.id), "rawId": b64(d.id), "type": "public-key", "clientExtensionResults": map[string]any{},
		"response": map[string]any{
			"clientDataJSON": b64(clientData), "authenticatorData": b64(authData), "signature": b64(signature), "userHandle": b64(d.handle),
		},
	}
}
