package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Person is somebody who uses the server: a name and a uid that need no
// account.
type Person struct {
	Name string
	UID  uint32
}

// The people of tests and of the demo.
var (
	Alice = Person{"alice", 64001}
	Bob   = Person{"bob", 64002}
)

// A Proxy is a running ds01-proxy.
type Proxy struct {
	Dir    string
	cmd    *exec.Cmd
	ended  chan struct{}
	err    error
	homes  string
	args   []string
	binary string
}

// StartProxy runs binary before the Engine on socket, with all files below dir,
// for people, and waits until it answers.
func StartProxy(ctx context.Context, binary, dir, socket string, people []Person, args ...string) (*Proxy, error) {
	p := &Proxy{Dir: dir, binary: binary, homes: filepath.Join(dir, "homes")}
	p.args = append([]string{"serve", "--engine", "unix://" + socket, "--run-dir", filepath.Join(dir, "run"),
		"--state-dir", filepath.Join(dir, "state")}, args...)
	for _, who := range people {
		p.args = append(p.args, "--user", fmt.Sprintf("%s:%d", who.Name, who.UID))
		home := filepath.Join(p.homes, who.Name)
		if err := errors.Join(os.MkdirAll(home, 0o755), os.Chown(home, int(who.UID), int(who.UID))); err != nil {
			return nil, fmt.Errorf("home of %s: %w", who.Name, err)
		}
	}
	// People must be able to walk to their sockets.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	if err := p.Start(ctx, people); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

// Start starts the process; it may be called again after Stop.
func (p *Proxy) Start(ctx context.Context, people []Person) error {
	log, err := os.OpenFile(p.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("proxy log: %w", err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.binary, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start proxy: %w", err)
	}
	p.ended = make(chan struct{})
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	deadline := time.Now().Add(20 * time.Second)
	for {
		ready := true
		for _, who := range people {
			if _, err := os.Stat(p.Socket(who)); err != nil {
				ready = false
			}
		}
		if _, err := os.Stat(p.Shared()); err == nil && ready {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("the proxy ended at once: %w: %s", p.err, p.Log())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the proxy is not ready: %s", p.Log())
		}
	}
}

// PID is the process ID of the proxy.
func (p *Proxy) PID() int { return p.cmd.Process.Pid }

// LogPath is the file with what the proxy prints, and Log its text.
func (p *Proxy) LogPath() string { return filepath.Join(p.Dir, "proxy.log") }

// Log returns what the proxy printed.
func (p *Proxy) Log() string {
	text, err := os.ReadFile(p.LogPath())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Audit returns the audit records as text.
func (p *Proxy) Audit() (string, error) {
	text, err := os.ReadFile(filepath.Join(p.Dir, "state", "audit.jsonl"))
	return string(text), err
}

// Socket is a person's own socket.
func (p *Proxy) Socket(who Person) string {
	return filepath.Join(p.Dir, "run", "users", who.Name+".sock")
}

// Shared is the shared socket.
func (p *Proxy) Shared() string { return filepath.Join(p.Dir, "run", "docker.sock") }

// Home is a person's home directory.
func (p *Proxy) Home(who Person) string { return filepath.Join(p.homes, who.Name) }

// Signal sends the proxy a signal.
func (p *Proxy) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop ends the proxy and says if it failed.
func (p *Proxy) Stop() error {
	if p.ended == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return errors.New("the proxy did not stop when told to")
	}
	p.ended = nil
	return p.err
}

// Kill ends the proxy without giving it the time to do anything.
func (p *Proxy) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	<-p.ended
	p.ended = nil
	// Sockets that nobody listens on would look like a proxy that is ready.
	return errors.Join(os.RemoveAll(filepath.Join(p.Dir, "run", "users")), os.RemoveAll(p.Shared()))
}

// Command prepares a program to be run as a person with DOCKER_HOST set to
// their socket.
func (p *Proxy) Command(ctx context.Context, who Person, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = p.Home(who)
	cmd.Env = append(os.Environ(), "HOME="+p.Home(who), "DOCKER_HOST=unix://"+p.Socket(who), "DOCKER_CONFIG="+filepath.Join(p.Home(who), ".docker"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: who.UID, Gid: who.UID}}
	return cmd
}

// Docker runs the docker CLI as a person and returns what it printed.
func (p *Proxy) Docker(ctx context.Context, who Person, args ...string) (string, error) {
	out, err := p.Command(ctx, who, "docker", args...).CombinedOutput()
	return string(out), err
}

// Metric reads one metric without labels; process and runtime figures are among
// them.
func (p *Proxy) Metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy/metrics", nil)
	if err != nil {
		return 0, err
	}
	c := HTTPClient(filepath.Join(p.Dir, "run", "metrics.sock"))
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		return 0, fmt.Errorf("metrics: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("metrics: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}
