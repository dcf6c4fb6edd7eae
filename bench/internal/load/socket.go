package load

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Socket is a WebSocket with as little beside it as possible: it takes whole text messages and answers pings.
type Socket struct {
	conn  net.Conn
	lines *bufio.Reader
	buf   []byte
}

// socketBuffer holds a message of the benchmark; ten thousand clients have one each.
const socketBuffer = 1024

// OpenSocket connects with a subprotocol.
func OpenSocket(ctx context.Context, addr, path, subprotocol string) (*Socket, error) {
	conn, err := dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	s := &Socket{conn: conn, lines: bufio.NewReaderSize(conn, socketBuffer)}
	if err := s.upgrade(ctx, addr, path, subprotocol); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Socket) upgrade(ctx context.Context, addr, path, subprotocol string) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := s.conn.SetDeadline(deadline); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
	}
	// The key is not secret, and its answer is not looked at.
	request := NewRequest(http.MethodGet, addr, path, nil, Header{"Connection", "Upgrade"}, Header{"Upgrade", "websocket"},
		Header{"Sec-WebSocket-Version", "13"}, Header{"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}, Header{"Sec-WebSocket-Protocol", subprotocol})
	if _, err := s.conn.Write(request); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	resp, err := http.ReadResponse(s.lines, nil)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("the answer is status %d", resp.StatusCode)
	}
	return s.conn.SetDeadline(time.Time{})
}

// Opcodes of RFC 6455.
const (
	opText  = 1
	opClose = 8
	opPing  = 9
	opPong  = 10
)

// Write sends one text message.
func (s *Socket) Write(message []byte) error { return s.frame(opText, message) }

// frame masks with a key of zeros, which changes nothing.
func (s *Socket) frame(opcode byte, payload []byte) error {
	head := []byte{0x80 | opcode, 0x80}
	switch n := len(payload); {
	case n < 126:
		head[1] |= byte(n)
	case n < 1<<16:
		head[1] |= 126
		head = binary.BigEndian.AppendUint16(head, uint16(n))
	default:
		return errors.New("the message is too long for the benchmark")
	}
	_, err := s.conn.Write(append(append(head, 0, 0, 0, 0), payload...))
	return err
}

// Read returns the next text message, which is valid until the next call.
func (s *Socket) Read() ([]byte, error) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(s.lines, head[:]); err != nil {
			return nil, err
		}
		size := uint64(head[1] & 0x7f)
		var more [8]byte
		switch size {
		case 126:
			if _, err := io.ReadFull(s.lines, more[6:]); err != nil {
				return nil, err
			}
			size = binary.BigEndian.Uint64(more[:])
		case 127:
			if _, err := io.ReadFull(s.lines, more[:]); err != nil {
				return nil, err
			}
			size = binary.BigEndian.Uint64(more[:])
		}
		if size > 1<<20 {
			return nil, fmt.Errorf("a message has %d bytes", size)
		}
		if uint64(cap(s.buf)) < size {
			s.buf = make([]byte, size)
		}
		payload := s.buf[:size]
		if _, err := io.ReadFull(s.lines, payload); err != nil {
			return nil, err
		}
		switch head[0] & 0x0f {
		case opText:
			return payload, nil
		case opPing:
			if err := s.frame(opPong, payload); err != nil {
				return nil, err
			}
		case opClose:
			return nil, io.EOF
		}
	}
}

// Close cuts the connection, as a phone does that loses its network.
func (s *Socket) Close() { _ = s.conn.Close() }
