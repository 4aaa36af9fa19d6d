// Package integration runs ds01-proxy before a real Docker Engine with real
// clients. It needs root, and starts and ends an Engine of its own.
package integration

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// The bed that all tests share. Each test removes what it made.
var (
	theEngine *lab.Engine
	theProxy  *lab.Proxy
	binary    string
	// probe is a static client to be bound into containers.
	probe string
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	scratch, err := lab.NewScratch()
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	dir := scratch.Dir
	binary = filepath.Join(dir, "ds01-proxy")
	if out, err := exec.Command("go", "build", "-race", "-o", binary, "../cmd/ds01-proxy").CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build: %w: %s", err, out)
	}
	probe = filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-o", probe, "./lab/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build: %w: %s", err, out)
	}
	ctx := context.Background()
	// In debug mode it says which routes it registers and which requests it serves.
	if theEngine, err = scratch.Engine(ctx, "--debug"); err != nil {
		return 1, err
	}
	theProxy, err = lab.StartProxy(ctx, binary, filepath.Join(mkdir(dir, "p")), theEngine.Socket, []lab.Person{lab.Alice, lab.Bob})
	if err != nil {
		return 1, err
	}
	defer func() {
		err = errors.Join(err, theProxy.Stop())
		if log := theProxy.Log(); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
			err = errors.Join(err, fmt.Errorf("the proxy's log has a race or a panic:\n%s", log))
		}
	}()
	return m.Run(), nil
}

func mkdir(parts ...string) string {
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		panic(err)
	}
	return dir
}

// limit bounds one test's dealings with the Engine.
func limit(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// admin runs the docker CLI on the Engine's own socket and wants it to succeed.
func admin(t *testing.T, args ...string) string {
	t.Helper()
	out, err := theEngine.Docker(limit(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// as runs the docker CLI as a person and wants it to succeed.
func as(t *testing.T, who lab.Person, args ...string) string {
	t.Helper()
	out, err := theProxy.Docker(limit(t), who, args...)
	if err != nil {
		t.Fatalf("%s: docker %s: %v: %s", who.Name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// container makes a container of who's that sleeps, and removes it at the end.
func container(t *testing.T, who lab.Person, name string, args ...string) (id string) {
	t.Helper()
	all := append([]string{"run", "-d", "--init", "--name", name}, args...)
	id = as(t, who, append(all, lab.Image, "sleep", "100000")...)
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "-v", id) })
	return id
}

// An answer is what came back for a raw request.
type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends one request over a socket.
func ask(t *testing.T, socket, method, target, body string, headers ...string) answer {
	t.Helper()
	c := lab.HTTPClient(socket)
	defer c.CloseIdleConnections()
	return askBy(t, c, method, target, body, headers...)
}

// askBy sends one request by a client.
func askBy(t *testing.T, c *http.Client, method, target, body string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(limit(t), method, "http://docker/", bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	path, query, _ := strings.Cut(target, "?")
	// Opaque travels as it is, with all of its encodings.
	req.URL.Opaque, req.URL.RawQuery = path, query
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

// eventually polls until ok is true or a deadline passes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// cgroupOf reads the cgroups of a process.
func cgroupOf(t *testing.T, pid string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
