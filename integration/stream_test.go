package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// open sends text on a socket and returns the connection and its reader.
func open(t *testing.T, socket, text string) (*net.UnixConn, *bufio.Reader) {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// head reads the status line and headers of an answer.
func head(t *testing.T, br *bufio.Reader) string {
	t.Helper()
	var all strings.Builder
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", all.String(), err)
		}
		if line == "\r\n" {
			return all.String()
		}
		all.WriteString(line)
	}
}

const upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n"

// TestAttachWithAndWithoutUpgrade speaks to a container whose program copies its
// input, on both sockets.
func TestAttachWithAndWithoutUpgrade(t *testing.T) {
	for _, side := range []struct{ name, socket string }{{"raw", theEngine.Socket}, {"alice", theProxy.Socket(lab.Alice)}} {
		for _, form := range []struct{ name, headers, status string }{
			{"upgrade", upgrade, "HTTP/1.1 101"}, {"no upgrade", "", "HTTP/1.1 200"},
			// Some libraries announce a body that never comes.
			{"chunked", "Transfer-Encoding: chunked\r\n", "HTTP/1.1 200"},
		} {
			t.Run(side.name+" "+form.name, func(t *testing.T) {
				name := "att-" + side.name + strings.ReplaceAll(form.name, " ", "")
				create := ask(t, side.socket, "POST", "/containers/create?name="+name,
					`{"Image":"busybox:local","Cmd":["sh","-c","cat; sleep 0.3; echo end"],"OpenStdin":true,"StdinOnce":true,"AttachStdin":true,"AttachStdout":true}`)
				if create.status != http.StatusCreated {
					t.Fatal(create)
				}
				t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", name) })
				length := "Content-Length: 0\r\n"
				if form.name == "chunked" {
					length = ""
				}
				c, br := open(t, side.socket, "POST /v1.41/containers/"+name+"/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: d\r\n"+form.headers+length+"\r\n")
				got := head(t, br)
				if !strings.HasPrefix(got, form.status) || !strings.Contains(got, "Content-Type: application/vnd.docker.raw-stream") {
					t.Fatalf("header:\n%s", got)
				}
				if got := ask(t, side.socket, "POST", "/containers/"+name+"/start", ""); got.status != http.StatusNoContent {
					t.Fatal(got)
				}
				if _, err := io.WriteString(c, "some input\n"); err != nil {
					t.Fatal(err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				out, err := io.ReadAll(br)
				if err != nil || !strings.Contains(string(out), "some input\n") || !strings.HasSuffix(string(out), "end\n") {
					t.Errorf("output %q, %v", out, err)
				}
			})
		}
	}
}

// TestExecStartForms starts execs with an upgrade, without, and detached.
func TestExecStartForms(t *testing.T) {
	container(t, lab.Alice, "exec-forms")
	for _, side := range []struct{ name, socket string }{{"raw", theEngine.Socket}, {"alice", theProxy.Socket(lab.Alice)}} {
		for _, form := range []struct{ name, headers, status string }{{"upgrade", upgrade, "HTTP/1.1 101"}, {"no upgrade", "", "HTTP/1.1 200"}} {
			created := ask(t, side.socket, "POST", "/containers/exec-forms/exec", `{"Cmd":["sh","-c","cat; echo end"],"AttachStdin":true,"AttachStdout":true}`)
			id := created.body[strings.Index(created.body, `:"`)+2:][:64]
			body := `{"Detach":false,"Tty":false}`
			c, br := open(t, side.socket, fmt.Sprintf("POST /exec/%s/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", id, form.headers, len(body), body))
			if got := head(t, br); !strings.HasPrefix(got, form.status) {
				t.Fatalf("%s %s: header:\n%s", side.name, form.name, got)
			}
			if _, err := io.WriteString(c, "input\n"); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			out, err := io.ReadAll(br)
			if err != nil || !strings.Contains(string(out), "input\n") || !strings.HasSuffix(string(out), "end\n") {
				t.Errorf("%s %s: output %q, %v", side.name, form.name, out, err)
			}
			if got := ask(t, side.socket, "GET", "/exec/"+id+"/json", ""); !strings.Contains(got.body, `"ExitCode":0`) {
				t.Errorf("%s %s: %s", side.name, form.name, got.body)
			}
		}
	}
}

// TestWebsocketAttach upgrades as a browser would.
func TestWebsocketAttach(t *testing.T) {
	name := "ws-alice"
	container(t, lab.Alice, name)
	for _, socket := range []string{theEngine.Socket, theProxy.Socket(lab.Alice)} {
		_, br := open(t, socket, "GET /v1.41/containers/"+name+"/attach/ws?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://d\r\n\r\n")
		got := head(t, br)
		// The accept value belongs to the key: RFC 6455, 1.3.
		if !strings.HasPrefix(got, "HTTP/1.1 101") || !strings.Contains(got, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
			t.Errorf("%s:\n%s", socket, got)
		}
	}
}

// TestLogsReachTheClientAsTheyCome wants a line before the container ends.
func TestLogsReachTheClientAsTheyCome(t *testing.T) {
	as(t, lab.Alice, "run", "-d", "--name", "slow-logs", lab.Image, "sh", "-c", "echo first; sleep 1000")
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "slow-logs") })
	_, br := open(t, theProxy.Socket(lab.Alice), "GET /containers/slow-logs/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: d\r\n\r\n")
	head(t, br)
	if line, err := br.ReadString('f'); err != nil {
		t.Errorf("%q, %v", line, err)
	}
}

// figures are the proxy's descriptors and goroutines.
func figures(t *testing.T) (fds, goroutines float64) {
	t.Helper()
	ctx := limit(t)
	fds, err := theProxy.Metric(ctx, "process_open_fds")
	if err != nil {
		t.Fatal(err)
	}
	if goroutines, err = theProxy.Metric(ctx, "go_goroutines"); err != nil {
		t.Fatal(err)
	}
	return fds, goroutines
}

// TestAbortedStreamsLeaveNothingBehind opens 200 streams of each kind, cuts them,
// and wants descriptors and goroutines to be where they were.
func TestAbortedStreamsLeaveNothingBehind(t *testing.T) {
	as(t, lab.Alice, "run", "-d", "-i", "--name", "abort", lab.Image, "sh", "-c", "sleep 100000")
	t.Cleanup(func() { _, _ = theEngine.Docker(context.Background(), "rm", "-f", "abort") })
	sock := theProxy.Socket(lab.Alice)
	const streams = 200
	get := func(path string) func() string {
		return func() string { return "GET " + path + " HTTP/1.1\r\nHost: d\r\n\r\n" }
	}
	exec := func(headers string) func() string {
		return func() string {
			created := ask(t, sock, "POST", "/containers/abort/exec", `{"Cmd":["sleep","100000"],"AttachStdin":true,"AttachStdout":true}`)
			id := created.body[strings.Index(created.body, `:"`)+2:][:64]
			return "POST /exec/" + id + "/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n" + headers + "Content-Length: 2\r\n\r\n{}"
		}
	}
	halfClose := func(c *net.UnixConn) { _ = c.CloseWrite() }
	for _, kind := range []struct {
		name  string
		text  func() string
		count int
		// before is done to the connection between its header and its end.
		before func(*net.UnixConn)
		header bool
	}{
		{"events", get("/events"), streams, nil, true},
		{"events with a byte of the next request", func() string { return get("/events")() + "G" }, streams, nil, true},
		{"logs -f", get("/containers/abort/logs?follow=1&stdout=1"), streams, nil, true},
		{"stats", get("/containers/abort/stats"), streams, nil, true},
		{"wait", func() string {
			return "POST /containers/abort/wait HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n"
		}, streams, nil, true},
		{"attach", func() string {
			return "POST /containers/abort/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n" + upgrade + "Content-Length: 0\r\n\r\n"
		}, streams, nil, true},
		{"attach, half-closed first", func() string {
			return "POST /containers/abort/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\n" + upgrade + "Content-Length: 0\r\n\r\n"
		}, streams, halfClose, true},
		{"attach with input that nobody reads", func() string {
			return "POST /containers/abort/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: d\r\n" + upgrade + "Content-Length: 0\r\n\r\n"
		}, streams, func(c *net.UnixConn) {
			_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			_, _ = c.Write(make([]byte, 1<<20))
		}, true},
		{"exec", exec(upgrade), streams, nil, true},
		{"exec without upgrade", exec(""), streams, halfClose, true},
		// The Engine serves one archive of a container at a time.
		{"cp out", get("/containers/abort/archive?path=/bin"), streams, func(c *net.UnixConn) { c.Close() }, true},
		{"cp in, cut short", func() string {
			return "PUT /containers/abort/archive?path=/tmp HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\nabc"
		}, streams, nil, false},
		{"build, cut short", func() string {
			return "POST /build HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-tar\r\nContent-Length: 100000\r\n\r\nabc"
		}, streams, nil, false},
		{"a header, cut short", func() string { return "GET /containers/ab" }, streams, nil, false},
		{"nothing said", func() string { return "" }, streams, nil, false},
	} {
		t.Run(kind.name, func(t *testing.T) {
			// What the first one of a kind opens for good is not counted.
			fds, goroutines := figures(t)
			conns := make([]*net.UnixConn, 0, kind.count)
			for range kind.count {
				c, br := open(t, sock, kind.text())
				if kind.header {
					if h := head(t, br); !strings.HasPrefix(h, "HTTP/1.1 200") && !strings.HasPrefix(h, "HTTP/1.1 101") {
						t.Fatalf("header:\n%s", h)
					}
				}
				if kind.before != nil {
					kind.before(c)
				}
				conns = append(conns, c)
			}
			for _, c := range conns {
				c.Close()
			}
			const slack = 8
			var nowFDs, nowGoroutines float64
			deadline := time.Now().Add(40 * time.Second)
			for {
				nowFDs, nowGoroutines = figures(t)
				if nowFDs <= fds+slack && nowGoroutines <= goroutines+slack {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("descriptors %v → %v, goroutines %v → %v", fds, nowFDs, goroutines, nowGoroutines)
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
}

// TestRequestsAreCounted sends what two parsers could split differently, and
// wants as many answers as the Engine gives on its own socket, with the same
// status.
func TestRequestsAreCounted(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"pipelined", "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\nGET /_ping HTTP/1.1\r\nHost: d\r\n\r\nGET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"},
		{"two lengths", "POST /containers/prune HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nGET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"},
		{"length and chunks", "POST /containers/nosuch/stop HTTP/1.1\r\nHost: d\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"},
		{"a body on a GET", "GET /_ping HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\n\r\nabcGET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"},
		{"folded header", "GET /_ping HTTP/1.1\r\nHost: d\r\nX: a\r\n b\r\nConnection: close\r\n\r\n"},
		{"bare line feeds", "GET /_ping HTTP/1.1\nHost: d\nConnection: close\n\n"},
		{"space before colon", "GET /_ping HTTP/1.1\r\nHost: d\r\nContent-Length : 3\r\nConnection: close\r\n\r\n"},
		{"prior knowledge of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"HTTP/1.0", "GET /_ping HTTP/1.0\r\n\r\n"},
		{"no host", "GET /_ping HTTP/1.1\r\nConnection: close\r\n\r\n"},
		{"absolute form", "GET http://elsewhere/_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"},
		{"expect", "POST /containers/nosuch/stop HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, via := statuses(t, theEngine.Socket, c.text), statuses(t, theProxy.Socket(lab.Alice), c.text)
			if raw != via && !(c.name == "prior knowledge of HTTP/2") {
				t.Errorf("raw socket answers %s, alice's %s", raw, via)
			}
			if strings.Contains(via, "101") || via == "" {
				t.Errorf("alice's socket answers %q", via)
			}
		})
	}
}

// statuses sends text and returns the status of every answer until the end.
func statuses(t *testing.T, socket, text string) string {
	t.Helper()
	c, br := open(t, socket, text)
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var all []string
	for {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return strings.Join(all, " ")
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		all = append(all, fmt.Sprint(resp.StatusCode))
	}
}
