package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
	"github.com/ds01/ds01-proxy/proxy"
)

// A desk is a proxy whose users are in a group of the test's own, so that nobody else is
// in their slices.
type desk struct {
	t      *testing.T
	p      *lab.Proxy
	e      *lab.Engine
	group  string
	limits string
}

var desks atomic.Int64

// newDesk starts a proxy before an Engine for a group with these limits, written as a
// map of YAML, with more of a configuration. Its containers and slices go at the end.
func newDesk(t *testing.T, e *lab.Engine, limits, config string) *desk {
	t.Helper()
	d := sliced(t, e)
	d.limit(limits)
	d.p = ownProxy(t, e.Socket, "--config", d.config(config))
	t.Cleanup(d.clear)
	return d
}

// sliced is a desk without a proxy yet.
func sliced(t *testing.T, e *lab.Engine) *desk {
	t.Helper()
	d := &desk{t: t, e: e, group: fmt.Sprintf("q%dx%d", os.Getpid(), desks.Add(1))}
	d.limits = filepath.Join(t.TempDir(), "resource-limits.yaml")
	t.Cleanup(d.unslice)
	return d
}

// config writes a configuration that names the limits file, and returns its path.
func (d *desk) config(more string) string {
	d.t.Helper()
	path := filepath.Join(filepath.Dir(d.limits), "config.yaml")
	if err := os.WriteFile(path, []byte("limits_file: "+d.limits+"\n"+more), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// limit replaces the limits file as editors do.
func (d *desk) limit(limits string) {
	d.t.Helper()
	text := fmt.Sprintf("default_group: %s\ngroups:\n  %s: %s\n", d.group, d.group, limits)
	if err := os.WriteFile(d.limits+"~", []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(d.limits+"~", d.limits); err != nil {
		d.t.Fatal(err)
	}
}

// cgroup is the directory of a user's slice in a v1 hierarchy.
func (d *desk) cgroup(controller string, who lab.Person) string {
	return filepath.Join("/sys/fs/cgroup", controller, "ds01.slice", "ds01-"+d.group+".slice", "ds01-"+d.group+"-"+who.Name+".slice")
}

// figure reads a number in a user's slice, or in the cgroup of one of their containers
// below it; v1 spells no limit of memory as a number near 1<<63.
func (d *desk) figure(who lab.Person, file string, below ...string) string {
	controller, _, _ := strings.Cut(file, ".")
	text, err := os.ReadFile(filepath.Join(append([]string{d.cgroup(controller, who)}, append(below, file)...)...))
	if err != nil {
		return err.Error()
	}
	if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 1<<60 {
		return "max"
	}
	return strings.TrimSpace(string(text))
}

// unslice removes the group's slices.
func (d *desk) unslice() {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/ds01.slice/ds01-" + d.group + ".slice")
	for _, root := range roots {
		eventually(d.t, root+" is gone", func() bool {
			_ = filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					// Those that have others in them stay until these are gone.
					_ = os.Remove(path)
				}
				return nil
			})
			_, err := os.Stat(root)
			return os.IsNotExist(err)
		})
	}
}

// clear removes the group's containers, and their anonymous volumes.
func (d *desk) clear() {
	ctx := context.Background()
	for _, id := range d.all() {
		_, _ = d.e.Docker(ctx, "rm", "-f", "-v", id)
	}
}

// all are the IDs of the group's containers, as the Engine knows them.
func (d *desk) all() (ids []string) {
	for _, c := range d.inspect() {
		ids = append(ids, c.ID)
	}
	return ids
}

// A kept is what the Engine says of a container.
type kept struct {
	ID, Name string
	Image    string
	Config   struct {
		Env    []string
		Labels map[string]string
	}
	State struct {
		Status     string
		Running    bool
		Paused     bool
		Restarting bool
		OOMKilled  bool
		ExitCode   int
		Pid        int
	}
	HostConfig struct {
		CgroupParent      string
		Memory, NanoCPUs  int64
		MemorySwap        int64
		ShmSize, CPUQuota int64
		PidsLimit         *int64
		Runtime           string
		RestartPolicy     struct{ Name string }
	}
}

// inspect asks the Engine about all containers of the group.
func (d *desk) inspect() (list []kept) {
	d.t.Helper()
	ctx := context.Background()
	out, err := d.e.Docker(ctx, "ps", "-aq", "--no-trunc")
	if err != nil {
		return nil
	}
	for _, id := range strings.Fields(out) {
		if c, ok := d.one(id); ok && strings.Contains(c.HostConfig.CgroupParent, "/ds01-"+d.group+".slice/") {
			list = append(list, c)
		}
	}
	return list
}

// one asks the Engine about a container.
func (d *desk) one(ref string) (c kept, ok bool) {
	d.t.Helper()
	got := ask(d.t, d.e.Socket, "GET", "/containers/"+ref+"/json", "")
	if got.status != http.StatusOK {
		return c, false
	}
	if err := json.Unmarshal([]byte(got.body), &c); err != nil {
		d.t.Fatal(err)
	}
	return c, true
}

// running counts the group's containers that run.
func (d *desk) running() (n int) {
	for _, c := range d.inspect() {
		if c.State.Running {
			n++
		}
	}
	return n
}

// as runs the docker CLI as a person.
func (d *desk) as(who lab.Person, args ...string) (string, error) {
	out, err := d.p.Docker(limit(d.t), who, args...)
	return strings.TrimSpace(out), err
}

// must wants it to succeed.
func (d *desk) must(who lab.Person, args ...string) string {
	d.t.Helper()
	out, err := d.as(who, args...)
	if err != nil {
		d.t.Fatalf("%s: docker %s: %v: %s", who.Name, strings.Join(args, " "), err, out)
	}
	return out
}

// refused wants it to fail with texts.
func (d *desk) refused(who lab.Person, texts []string, args ...string) {
	d.t.Helper()
	out, err := d.as(who, args...)
	if err == nil {
		d.t.Errorf("%s: docker %s: went through: %s", who.Name, strings.Join(args, " "), out)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			d.t.Errorf("%s: docker %s: no %q in %q", who.Name, strings.Join(args, " "), text, out)
		}
	}
}

// ask sends a raw request as a person.
func (d *desk) ask(who lab.Person, method, target, body string) answer {
	d.t.Helper()
	return ask(d.t, d.p.Socket(who), method, target, body)
}

// create makes a container of busybox with a host configuration and returns its ID.
func (d *desk) create(who lab.Person, host string) (id string, got answer) {
	d.t.Helper()
	got = d.ask(who, "POST", "/containers/create", `{"Image":"busybox:local","Cmd":["sleep","100000"],"HostConfig":{`+host+`}}`)
	return idIn(got), got
}

// start starts a container.
func (d *desk) start(who lab.Person, id string) answer {
	d.t.Helper()
	return d.ask(who, "POST", "/containers/"+id+"/start", "")
}

// report is what a person is told of their limits.
func (d *desk) report(who lab.Person) (r proxy.Report) {
	d.t.Helper()
	got := d.ask(who, "GET", "/_ds01/limits", "")
	if got.status != http.StatusOK {
		d.t.Fatalf("limits of %s: %d %s", who.Name, got.status, got.body)
	}
	if err := json.Unmarshal([]byte(got.body), &r); err != nil {
		d.t.Fatal(err)
	}
	return r
}

// atOnceAll does something n times at once.
func atOnceAll(n int, do func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}

// memoryFigures are in every refusal for memory.
var memoryFigures = []string{"Memory quota exceeded (rule memory-quota).", "Requested: ", "Limit: ", "docker stop", "docker ps", "check-limits"}

// isMemoryRefusal reports whether an answer is one, in full.
func isMemoryRefusal(got answer) bool {
	for _, text := range memoryFigures {
		if !strings.Contains(got.body, text) {
			return false
		}
	}
	return got.status == http.StatusForbidden
}

// pause is between two looks at what changes by itself.
func pause() { time.Sleep(20 * time.Millisecond) }
