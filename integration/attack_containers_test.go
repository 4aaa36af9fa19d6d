package integration

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/creack/pty"
)

// containerAttacks go at bob's containers by their paths.
func containerAttacks() []attack {
	return []attack{
		{row: "GET /containers/{}/json", ref: "run", target: "/containers/_REF_/json", worked: tells("atk-secret-env")},
		{row: "GET /containers/{}/json", ref: "run", name: "with sizes", target: "/containers/_REF_/json?size=1", worked: tells("atk-secret-env")},
		{row: "GET /containers/{}/json", name: "by a link's alias", target: "/containers/atk-off/peer/json", worked: tells("atk-secret-env")},
		{row: "GET /containers/{}/top", ref: "run", target: "/containers/_REF_/top", worked: tells("atk-secret-log")},
		{row: "GET /containers/{}/top", ref: "run", name: "with options of ps", target: "/containers/_REF_/top?ps_args=-ef", worked: tells("atk-secret-log")},
		{row: "GET /containers/{}/logs", ref: "run", target: "/containers/_REF_/logs?stdout=1", worked: tells("atk-secret-log")},
		{row: "GET /containers/{}/stats", ref: "run", target: "/containers/_REF_/stats?stream=0&one-shot=1", worked: tells("memory_stats")},
		{row: "GET /containers/{}/changes", ref: "run", target: "/containers/_REF_/changes", worked: tells("atk-secret-file")},
		{row: "GET /containers/{}/export", ref: "run", target: "/containers/_REF_/export", worked: tells("atk-secret-text")},
		{row: "HEAD /containers/{}/archive", ref: "run", target: "/containers/_REF_/archive?path=/atk-secret-file", worked: answers(200)},
		{row: "GET /containers/{}/archive", ref: "run", target: "/containers/_REF_/archive?path=/atk-secret-file", worked: tells("atk-secret-text")},
		{row: "GET /containers/{}/archive", ref: "run", name: "from a volume", target: "/containers/_REF_/archive?path=/data/f", worked: tells("atk-secret-volume")},
		{row: "PUT /containers/{}/archive", ref: "run", target: "/containers/_REF_/archive?path=/tmp", body: tarOf("planted", "x"), worked: shows("run", "/tmp/planted")},
		{row: "PUT /containers/{}/archive", ref: "run", name: "into a volume", target: "/containers/_REF_/archive?path=/data", body: tarOf("planted", "x"), worked: shows("vol", "planted")},

		{row: "POST /containers/{}/wait", ref: "off", target: "/containers/_REF_/wait", worked: tells("StatusCode")},
		{row: "POST /containers/{}/kill", ref: "run", target: "/containers/_REF_/kill", send: settled("run", "exited"), worked: shows("run", `"Status":"exited"`)},
		{row: "POST /containers/{}/kill", ref: "held", name: "with a signal", target: "/containers/_REF_/kill?signal=KILL", send: settled("held", "exited"), worked: shows("held", `"Status":"exited"`)},
		{row: "POST /containers/{}/pause", ref: "run", target: "/containers/_REF_/pause", worked: shows("run", `"Status":"paused"`)},
		{row: "POST /containers/{}/unpause", ref: "held", target: "/containers/_REF_/unpause", worked: shows("held", `"Status":"running"`)},
		{row: "POST /containers/{}/stop", ref: "held", target: "/containers/_REF_/stop?t=0", worked: shows("held", `"Status":"exited"`)},
		{row: "POST /containers/{}/start", ref: "off", target: "/containers/_REF_/start", worked: differs("off")},
		{row: "POST /containers/{}/start", ref: "off", name: "with host settings, as before API 1.24", target: "/v1.23/containers/_REF_/start", body: `{"Binds":["/etc:/e"]}`,
			status: 400, says: "too old", worked: shows("off", `/etc:/e`)},
		{row: "POST /containers/{}/start", ref: "off", name: "from a checkpoint", target: "/containers/_REF_/start?checkpoint=x", says: "admins only",
			rawFails: "checkpoints are experimental"},
		{row: "POST /containers/{}/restart", ref: "held", target: "/containers/_REF_/restart?t=0", worked: shows("held", `"Status":"running"`)},
		{row: "POST /containers/{}/resize", ref: "run", target: "/containers/_REF_/resize?h=11&w=22", worked: func(w *world, _ answer) bool {
			return w.terminalSize(w.inspect(w.id["run"]).State.Pid) == "11x22"
		}},
		{row: "POST /containers/{}/rename", ref: "run", target: "/containers/_REF_/rename?name=atk-stolen", worked: shows("run", "/atk-stolen")},
		{row: "POST /containers/{}/rename", name: "of one's own to bob's short ID", target: "/containers/_OWN_/rename?name=_SHORT_", says: "looks like a container ID",
			worked: func(w *world, _ answer) bool { return w.inspect(w.id["run"][:12]).ID == w.id["own"] }},
		{row: "POST /containers/{}/rename", name: "of one's own to bob's name", target: "/containers/_OWN_/rename?name=atk-run", status: 409, rawFails: "the name is taken"},
		{row: "POST /containers/{}/update", ref: "run", target: "/containers/_REF_/update", body: `{"RestartPolicy":{"Name":"always"}}`, worked: shows("run", `"Name":"always"`)},
		{row: "POST /containers/{}/update", ref: "run", name: "in other cases", target: "/containers/_REF_/update", body: `{"restartpolicy":{"NAME":"always"}}`, worked: shows("run", `"Name":"always"`)},
		{row: "POST /containers/{}/attach", ref: "run", name: "logs", target: "/containers/_REF_/attach?logs=1&stdout=1", worked: tells("atk-secret-log")},
		{row: "POST /containers/{}/attach", ref: "run", name: "input", target: "/containers/_REF_/attach?stream=1&stdin=1&stdout=1", send: typed("POST", upgrade, "typed\n"), worked: logged("got typed")},
		{row: "GET /containers/{}/attach/ws", ref: "run", target: "/containers/_REF_/attach/ws?stream=1&stdin=1&stdout=1", send: typed("GET", websocket, frame("websocketed\n")), worked: logged("got websocketed")},
		{row: "POST /containers/{}/exec", ref: "run", target: "/containers/_REF_/exec", body: `{"Cmd":["id"]}`, worked: differs("run")},
		{row: "POST /containers/{}/exec", ref: "run", name: "and start", target: "/containers/_REF_/exec", body: `{"AttachStdout":true,"Cmd":["cat","/atk-secret-file"]}`, send: createdAndStarted,
			worked: tells("atk-secret-text")},
		{row: "DELETE /containers/{}", ref: "off", target: "/containers/_REF_", status: 403, worked: gone("off")},
		{row: "DELETE /containers/{}", ref: "run", name: "by force and with volumes", target: "/containers/_REF_?force=1&v=1", worked: gone("run")},
		{row: "DELETE /containers/{}", name: "of a link", target: "/containers/atk-off/peer?link=1", says: "admins only", worked: differs("off")},

		{row: "POST /containers/{}/copy", ref: "run", name: "as before API 1.24", target: "/v1.23/containers/_REF_/copy", body: `{"Resource":"/atk-secret-file"}`, status: 400, says: "too old", worked: tells("atk-secret-text")},
		{row: "POST /containers/{}/copy", ref: "run", target: "/containers/_REF_/copy", body: `{"Resource":"/atk-secret-file"}`, says: "admins only", rawFails: "it is gone since API 1.24"},
		{row: "GET /containers/{}/checkpoints", ref: "run", target: "/containers/_REF_/checkpoints", says: "admins only", rawFails: "checkpoints are experimental"},
		{row: "POST /containers/{}/checkpoints", ref: "run", target: "/containers/_REF_/checkpoints", body: `{"CheckpointID":"x"}`, says: "admins only", rawFails: "checkpoints are experimental"},
		{row: "DELETE /containers/{}/checkpoints/{}", ref: "run", target: "/containers/_REF_/checkpoints/x", says: "admins only", rawFails: "checkpoints are experimental"},
		{row: "ANY /containers/{}/{}", method: "POST", ref: "run", target: "/containers/_REF_/anything", body: "{}", rawFails: "there is nothing"},
		{row: "ANY /containers/{}", method: "GET", ref: "run", target: "/containers/_REF_", rawFails: "there is nothing"},

		{row: "GET /containers/json", target: "/containers/json?all=1", status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "before API 1.25", target: "/v1.24/containers/json?all=1", status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "percent-encoded", target: "/%63ontainers/%6a%73on?all=1", status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "with an encoded slash", target: "/containers%2fjson?all=1", status: 400, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "with sizes and a limit", target: "/containers/json?limit=100&size=1", status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "bob's label", target: query("/containers/json?all=1", "filters", `{"label":["ds01.user=bob"]}`), status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "bob's label as a map", target: query("/containers/json?all=1", "filters", `{"label":{"ds01.user=bob":true}}`), status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "null filters", target: query("/containers/json?all=1", "filters", `null`), status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "an empty filter", target: query("/containers/json?all=1", "filters", `{"label":{}}`), status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "two filters", target: query("/containers/json?all=1", "filters", `{}`, "filters", `{"label":["ds01.user=alice"]}`), status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", ref: "run", name: "since", target: query("/containers/json?all=1", "filters", `{"since":["_REF_"]}`), worked: answers(200)},
		{row: "GET /containers/json", ref: "held", name: "before", target: query("/containers/json?all=1", "filters", `{"before":["_REF_"]}`), worked: answers(200)},
		{row: "GET /containers/json", name: "bob's name", target: query("/containers/json?all=1", "filters", `{"name":["atk-run"]}`), status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "bob's ID", target: query("/containers/json?all=1", "filters", `{"id":["_SHORT_"]}`), status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "bob's volume", target: query("/containers/json?all=1", "filters", `{"volume":["atk-vol"]}`), status: 200, worked: tells("atk-run")},
		{row: "GET /containers/json", name: "bob's network", target: query("/containers/json?all=1", "filters", `{"network":["atk-net"]}`), status: 200, worked: tells("atk-run")},
	}
}

// tarOf is a tar stream of files: names and texts.
func tarOf(files ...string) string {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i+1 < len(files); i += 2 {
		err := w.WriteHeader(&tar.Header{Name: files[i], Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(files[i+1]))})
		if err == nil {
			_, err = io.WriteString(w, files[i+1])
		}
		if err != nil {
			panic(fmt.Sprint("a tar stream in memory: ", err))
		}
	}
	if err := w.Close(); err != nil {
		panic(fmt.Sprint("a tar stream in memory: ", err))
	}
	return out.String()
}

// settled sends a request and, where it was obeyed, waits for the state that
// comes of it.
func settled(key, status string) func(w *world, socket, target, body string) answer {
	return func(w *world, socket, target, body string) answer {
		got := ask(w.t, socket, "POST", target, body)
		if got.status < 300 {
			eventually(w.t, key+" is "+status, func() bool { return strings.Contains(w.one(key), `"Status":"`+status+`"`) })
		}
		return got
	}
}

const websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://d\r\n"

// frame is text as a client's websocket frame, masked with zeros: RFC 6455, 5.2.
func frame(text string) string {
	return string([]byte{0x81, 0x80 | byte(len(text)), 0, 0, 0, 0}) + text
}

// typed opens a stream and types text into it.
func typed(method, headers, text string) func(w *world, socket, target, body string) answer {
	return func(w *world, socket, target, _ string) answer {
		c, br := open(w.t, socket, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: d\r\n%sContent-Length: 0\r\n\r\n", method, target, headers))
		defer c.Close()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		if resp.StatusCode != http.StatusSwitchingProtocols {
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				w.t.Fatal(err)
			}
			return answer{resp.StatusCode, resp.Header, string(text)}
		}
		if _, err := io.WriteString(c, text); err != nil {
			w.t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, ""}
	}
}

// logged waits for a line in the log of bob's container, where the stream was
// opened at all.
func logged(line string) func(*world, answer) bool {
	return func(w *world, a answer) bool {
		if a.status != http.StatusSwitchingProtocols {
			return false
		}
		eventually(w.t, line+" is logged", func() bool {
			return strings.Contains(w.raw("GET", "/containers/"+w.id["run"]+"/logs?stdout=1", "").body, line)
		})
		return true
	}
}

// createdAndStarted makes an exec and starts it.
func createdAndStarted(w *world, socket, target, body string) answer {
	got := ask(w.t, socket, "POST", target, body)
	if got.status != http.StatusCreated {
		return got
	}
	return ask(w.t, socket, "POST", "/exec/"+idIn(got)+"/start", "{}")
}

// terminalSize reads the size of the terminal that a process has, from the host.
func (w *world) terminalSize(pid int) string {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/0", pid), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	rows, cols, err := pty.Getsize(f)
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("%dx%d", rows, cols)
}
