package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// buildAttacks make images: of what is bob's, beside it, and in his name.
func buildAttacks() []attack {
	const container = "this container belongs to bob"
	build := func(name, dockerfile, worked string, pairs ...string) attack {
		return attack{row: "POST /build", name: name, target: query("/build?nocache=1&rm=1&forcerm=1", pairs...), body: tarOf("Dockerfile", "FROM busybox:local\n"+dockerfile),
			header: []string{"Content-Type", "application/x-tar"}, worked: tells(worked)}
	}
	passes := func(a *attack) { a.status, a.alters = http.StatusOK, true }
	committed := func(name, target, body string) attack {
		return attack{row: "POST /commit", name: name, target: target, body: body, worked: bobsImage}
	}
	return []attack{
		{row: "POST /commit", ref: "run", target: "/commit?container=_REF_&repo=atk-stolen", worked: answers(201)},
		{row: "POST /commit", ref: "run", name: "without a pause", target: "/commit?container=_REF_&pause=0", worked: answers(201)},
		{row: "POST /commit", ref: "run", name: "after one's own", target: "/commit?container=_REF_&container=_OWN_", worked: func(w *world, a answer) bool {
			return strings.Contains(w.raw("GET", "/images/"+idIn(a)+"/json", "").body, "atk-secret")
		}},
		committed("a label in the body", "/commit?pause=0&container=_OWN_", `{"Labels":{"ds01.user":"bob"}}`).with(func(a *attack) { a.status, a.alters = 201, true }),
		committed("a label in the body, in another case", "/commit?pause=0&container=_OWN_", `{"labels":{"ds01.user":"bob"}}`).with(func(a *attack) { a.status, a.alters = 201, true }),
		committed("a label in the changes", query("/commit?pause=0&container=_OWN_", "changes", "LABEL ds01.user=bob"), "").with(refusedAs("labels that begin with ds01.")),
		committed("a label among the changes", query("/commit?pause=0&container=_OWN_", "changes", "ENV a=b\nlabel x=y ds01.user=bob"), "").with(refusedAs("labels that begin with ds01.")),
		committed("a label in the second changes", query("/commit?pause=0&container=_OWN_", "changes", "ENV a=b", "changes", "LABEL ds01.user=bob"), "").with(refusedAs("labels that begin with ds01.")),
		committed("a label with a variable", query("/commit?pause=0&container=_OWN_", "changes", "LABEL ds01.${x:-user}=bob"), "").with(refusedAs("labels that begin with ds01.")),
		committed("a label in quotes", query("/commit?pause=0&container=_OWN_", "changes", `LABEL "ds01.user"="bob"`), "").with(refusedAs("labels that begin with ds01.")),
		committed("a label with an escape", query("/commit?pause=0&container=_OWN_", "changes", `LABEL ds\01.user=bob`), "").with(refusedAs("labels that begin with ds01.")),
		committed("a label with a line's end in it", query("/commit?pause=0&container=_OWN_", "changes", "LABEL ds\\\n01.user=bob"), "").with(refusedAs("Permission denied")),
		committed("a label after a tab", query("/commit?pause=0&container=_OWN_", "changes", "LABEL\tds01.user=bob"), "").with(refusedAs("labels that begin with ds01.")),
		committed("a label after a form feed", query("/commit?pause=0&container=_OWN_", "changes", "\x0cLABEL ds01.user=bob"), "").with(refusedAs("labels that begin with ds01.")),
		committed("a label split over lines", query("/commit?pause=0&container=_OWN_", "changes", "LA\\\nBEL ds01.user=bob"), "").with(refusedAs("Permission denied")),
		committed("a label split over changes", query("/commit?pause=0&container=_OWN_", "changes", "LA\\", "changes", "BEL ds01.user=bob"), "").with(refusedAs("Permission denied")),
		committed("a label with another escape", query("/commit?pause=0&container=_OWN_", "changes", "# escape=`\nLABEL ds01`.user=bob"), "").with(refusedAs("Permission denied")),
		committed("a label with quotes inside", query("/commit?pause=0&container=_OWN_", "changes", `LABEL "ds01".user=bob`), "").with(refusedAs("Permission denied")),
		committed("a label after a byte order mark", query("/commit?pause=0&container=_OWN_", "changes", "\ufeffLABEL ds01.user=bob"), "").with(refusedAs("Permission denied")),
		committed("a label with a comment inside", query("/commit?pause=0&container=_OWN_", "changes", "LABEL \\\n# c\nds01.user=bob"), "").with(refusedAs("Permission denied")),
		committed("a label after another's continuation", query("/commit?pause=0&container=_OWN_", "changes", "LABEL a=b \\", "changes", "ds01.user=bob"), "").with(refusedAs("Permission denied")),
		committed("a form", "/commit?pause=0&container=_OWN_", "changes=LABEL+ds01.user%3Dbob").with(func(a *attack) {
			a.header, a.status, a.says = []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "form bodies"
			a.rawFails = "a commit's body must be JSON"
		}),

		build("bob's cgroup", "RUN cat /proc/self/cgroup", "ds01-student-bob.slice", "cgroupparent", "_SLICE_").with(passes),
		build("bob's cgroup, twice", "RUN cat /proc/self/cgroup", "ds01-student-bob.slice", "cgroupparent", "_SLICE_", "cgroupparent", "/x").with(passes),
		build("bob's label", "", "", "labels", `{"ds01.user":"bob"}`).with(passes).with(func(a *attack) { a.worked = bobsImage }),
		build("bob's label, twice", "", "", "labels", `{"ds01.user":"bob"}`, "labels", `{}`).with(passes).with(func(a *attack) { a.worked = bobsImage }),
		build("bob's label in the Dockerfile", "LABEL ds01.user=bob", "").with(passes).with(func(a *attack) { a.worked = bobsImage }),
		build("beside bob's container", "RUN hostname", "", "networkmode", "container:_REF_").with(besideBob).with(refusedAs(container)),
		build("beside bob's container, twice", "RUN hostname", "", "networkmode", "container:_REF_", "networkmode", "none").with(besideBob).with(refusedAs(container)),
		build("in bob's network", "RUN ip addr", "", "networkmode", "_REF_").with(func(a *attack) { a.ref, a.says, a.worked = "net", "this network belongs to bob", addressInBobsNetwork }),
		build("a context from the host's network", "", "").with(remote),
		build("a form over the query", "", "", "networkmode", "none").with(func(a *attack) {
			a.body, a.header = "networkmode=container:atk-run", []string{"Content-Type", "application/x-www-form-urlencoded"}
			a.status, a.says, a.rawFails, a.worked = 415, "form bodies", "the body is the context", nil
		}),
		build("by BuildKit, for an image that is nobody's", "COPY Dockerfile /f", "", "version", "2").with(func(a *attack) {
			a.strict, a.says, a.worked = true, "BuildKit is off", func(w *world, a answer) bool { return a.status == 200 && w.lists() != w.seen["lists"] }
		}),

		{row: "POST /build/prune", target: "/build/prune?all=1", status: 200, says: `"CachesDeleted":[]`, prepare: bobsCache, worked: func(w *world, a answer) bool { return !hasCache(w) }},
		{row: "POST /build/cancel", target: "/build/cancel", status: 200, prepare: bobsBuild, send: cancelled, worked: func(*world, answer) bool { return !building() }},
		{row: "POST /session", target: "/session", send: opened(), strict: true, says: "BuildKit is off", worked: answers(101)},
		{row: "POST /grpc", target: "/grpc", send: opened(), strict: true, says: "BuildKit is off", worked: answers(101)},
	}
}

// besideBob wants the step of a build to have the host name of bob's container.
func besideBob(a *attack) {
	a.ref = "run"
	a.worked = func(w *world, a answer) bool { return strings.Contains(a.body, w.id["run"][:12]+`\n`) }
}

// bobsImage wants an image to have been made that bears bob's name.
func bobsImage(w *world, a answer) bool {
	id := idIn(a)
	if m := regexp.MustCompile(`"aux":\{"ID":"([^"]+)"`).FindStringSubmatch(a.body); m != nil {
		id = m[1]
	}
	return id != "" && labelledBobs("/images/"+id+"/json")(w, a)
}

// addressInBobsNetwork wants the step of a build to have an address beside that
// of bob's container.
func addressInBobsNetwork(w *world, a answer) bool {
	address := w.inspect(w.id["run"]).NetworkSettings.Networks["atk-net"].IPAddress
	return strings.Contains(a.body, "inet "+address[:strings.LastIndexByte(address, '.')+1])
}

// remote lets the Engine fetch a build's context from an address of the host.
func remote(a *attack) {
	var fetched atomic.Int64
	a.body, a.header, a.says = "", nil, "from a URL"
	a.send = func(w *world, socket, target, _ string) answer {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			w.t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			fetched.Add(1)
			fmt.Fprint(rw, "FROM busybox:local\n")
		})}
		go func() { _ = server.Serve(l) }()
		defer server.Close()
		return ask(w.t, socket, "POST", query(target, "remote", "http://"+l.Addr().String()+"/Dockerfile"), "")
	}
	a.worked = func(*world, answer) bool { return fetched.Load() > 0 }
}

// opened asks for an upgrade to h2c and wants nothing of it.
func opened() func(w *world, socket, target, body string) answer {
	return typed("POST", "Connection: Upgrade\r\nUpgrade: h2c\r\nX-Docker-Expose-Session-Uuid: atk\r\n", "")
}

// bobsCache lets BuildKit keep something that it built for bob.
func bobsCache(w *world) {
	w.must(lab.Bob, "POST", "/build?version=2", tarOf("Dockerfile", "FROM scratch\nCOPY Dockerfile /f\n"))
	w.removeAllBut(w.seen["lists"])
	if !hasCache(w) {
		w.t.Fatal("bob's build left no cache")
	}
}

// hasCache reports whether BuildKit keeps anything.
func hasCache(w *world) bool {
	return !strings.Contains(w.raw("GET", "/system/df", "").body, `"BuildCache":null`)
}

// bobsBuild starts a build of bob's that takes long, with an ID that anybody
// could guess.
func bobsBuild(w *world) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It ends when it is cancelled, with whatever answer.
		c := lab.HTTPClient(theProxy.Socket(lab.Bob))
		defer c.CloseIdleConnections()
		if resp, err := c.Post("http://d/build?version=2&buildid=atk-long", "application/x-tar", strings.NewReader(tarOf("Dockerfile", "FROM busybox:local\nRUN sleep 31415\n"))); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}()
	w.t.Cleanup(func() {
		w.raw("POST", "/build/cancel?id=bob/atk-long", "")
		<-done
	})
	eventually(w.t, "bob's build runs", building)
}

// building reports whether the step of bob's build runs.
func building() bool {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	return err == nil && slices.ContainsFunc(lines, func(path string) bool {
		text, err := os.ReadFile(path)
		return err == nil && string(text) == "sleep\x0031415\x00"
	})
}

// cancelled asks for bob's build to be cancelled, by the ID that he gave it and by
// the one that the Engine knows. The Engine says yes to any; it obeys when the
// step ends.
func cancelled(w *world, socket, target, _ string) answer {
	if !building() {
		w.t.Error("bob's build ended before the Engine itself was asked")
	}
	ask(w.t, socket, "POST", target+"?id=atk-long", "")
	got := ask(w.t, socket, "POST", target+"?id=bob/atk-long", "")
	if socket == theEngine.Socket {
		eventually(w.t, "bob's build ends", func() bool { return !building() })
	}
	return got
}
