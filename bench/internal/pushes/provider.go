package pushes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/satchelbase/satchel/bench/internal/machine"
)

// provider is the running stand-in, and what it prints of itself.
type provider struct {
	cmd                  *exec.Cmd
	url, ca, key         string
	keyID, teamID, topic string
}

// startProvider runs satchel dev stubs.
func startProvider(ctx context.Context, line []string, dir string) (*provider, error) {
	line = append(line, "dev", "stubs", "--port", "0", "--dir", dir, "--latency", latency.String())
	p := &provider{cmd: machine.Command(ctx, dir, line[0], line[1:]...)}
	p.cmd.Env = os.Environ()
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the stand-in: %w", err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the stand-in: %w", err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		p.read(lines.Text())
		if strings.HasPrefix(lines.Text(), "Ctrl-C") && p.url != "" && p.key != "" {
			return p, nil
		}
	}
	_, err = p.stop()
	return nil, errors.Join(errors.New("the stand-in did not say where it is"), err)
}

// read takes what it needs of a line.
func (p *provider) read(line string) {
	name, value, _ := strings.Cut(line, "=")
	switch name {
	case "SATCHEL_PUSH_APNS_ENDPOINT":
		p.url = value
	case "SATCHEL_PUSH_CA_FILE":
		p.ca = value
	}
	words := strings.Fields(line)
	if !strings.HasPrefix(line, "satchel push connect apns ") {
		return
	}
	for i, word := range words[:len(words)-1] {
		switch word {
		case "--key-file":
			p.key = words[i+1]
		case "--key-id":
			p.keyID = words[i+1]
		case "--team-id":
			p.teamID = words[i+1]
		case "--topic":
			p.topic = words[i+1]
		}
	}
}

// stop ends it and returns the processor time that it has used.
func (p *provider) stop() (time.Duration, error) {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return 0, fmt.Errorf("stop the stand-in: %w", err)
	}
	if err := p.cmd.Wait(); err != nil {
		return 0, fmt.Errorf("stop the stand-in: %w", err)
	}
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime(), nil
}
