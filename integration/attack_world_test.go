package integration

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// A thing is an object of bob's, or alice's own, that attacks are about.
type thing struct {
	// kind is the first segment of its paths, and name what it is called; images
	// and execs have none.
	kind, name string
	// needs are the things that it is made of: it is made anew when they are.
	needs []string
	make  func(w *world) (id string)
}

// order is the order in which things are made: what others are in comes first.
var order = []string{"vol", "idle vol", "net", "idle net", "own net", "run", "exec", "tty", "held", "off", "image", "tag", "plugin", "own"}

// things are what is set up: bob has a volume and a network that are in use and
// one of each that is not, a container that runs, with an exec that is yet to be
// started and one that has a terminal, a paused one, one that never ran and is
// linked to the paused one, an image without a name and one with a tag. The last are alice's, and the admin's plugin.
var things = map[string]thing{
	"vol":      {kind: "volumes", name: "atk-vol", make: volumeOf("atk-vol")},
	"idle vol": {kind: "volumes", name: "atk-vol-idle", make: volumeOf("atk-vol-idle")},
	"net":      {kind: "networks", name: "atk-net", make: networkOf(lab.Bob, "atk-net")},
	"idle net": {kind: "networks", name: "atk-net-idle", make: networkOf(lab.Bob, "atk-net-idle")},
	"run": {kind: "containers", name: "atk-run", needs: []string{"vol", "net"}, make: func(w *world) string {
		id := w.create(lab.Bob, "atk-run", `{"Image":"busybox:local","Tty":true,"OpenStdin":true,"Env":["SECRET=atk-secret-env"],
			"Cmd":["sh","-c","echo atk-secret-volume >/data/f; echo atk-secret-text >/atk-secret-file; echo atk-secret-log; while read x; do echo got $x; done; sleep 100000"],
			"HostConfig":{"Init":true,"IpcMode":"shareable","NetworkMode":"atk-net","Binds":["atk-vol:/data"]}}`)
		w.must(lab.Bob, "POST", "/containers/"+id+"/start", "")
		eventually(w.t, "bob's container runs", func() bool {
			return strings.Contains(w.raw("GET", "/containers/"+id+"/logs?stdout=1", "").body, "atk-secret-log")
		})
		return id
	}},
	"exec": {kind: "exec", needs: []string{"run"}, make: func(w *world) string {
		return w.must(lab.Bob, "POST", "/containers/atk-run/exec", `{"AttachStdout":true,"Cmd":["echo","atk-secret-exec"]}`)
	}},
	"tty": {kind: "exec", needs: []string{"run"}, make: func(w *world) string {
		id := w.must(lab.Bob, "POST", "/containers/atk-run/exec", `{"Tty":true,"Cmd":["sleep","100000"]}`)
		w.must(lab.Bob, "POST", "/exec/"+id+"/start", `{"Detach":true,"Tty":true}`)
		return id
	}},
	"held": {kind: "containers", name: "atk-held", make: func(w *world) string {
		id := w.create(lab.Bob, "atk-held", `{"Image":"busybox:local","Env":["SECRET=atk-secret-env"],"Cmd":["sleep","100000"],"HostConfig":{"Init":true}}`)
		w.must(lab.Bob, "POST", "/containers/"+id+"/start", "")
		w.must(lab.Bob, "POST", "/containers/"+id+"/pause", "")
		return id
	}},
	"off": {kind: "containers", name: "atk-off", needs: []string{"held"}, make: func(w *world) string {
		return w.create(lab.Bob, "atk-off", `{"Image":"busybox:local","Cmd":["sleep","100000"],"HostConfig":{"Init":true,"Links":["atk-held:peer"]}}`)
	}},
	"image": {kind: "images", make: func(w *world) string {
		return w.must(lab.Bob, "POST", "/commit?container="+w.id["off"], "")
	}},
	"tag": {kind: "images", name: "atk-image:1", make: func(w *world) string {
		return w.must(lab.Bob, "POST", "/commit?container="+w.id["off"]+"&repo=atk-image&tag=1", "")
	}},
	"own": {kind: "containers", name: "atk-own", make: func(w *world) string {
		id := w.create(lab.Alice, "atk-own", `{"Image":"busybox:local","Cmd":["sleep","100000"],"HostConfig":{"Init":true}}`)
		w.must(lab.Alice, "POST", "/containers/"+id+"/start", "")
		return id
	}},
	"own net": {kind: "networks", name: "atk-net-own", make: networkOf(lab.Alice, "atk-net-own")},
	"plugin": {kind: "plugins", name: "atk/plugin:1", make: func(w *world) string {
		if got := w.raw("POST", "/plugins/create?name=atk/plugin:1", pluginTar(w)); got.status != 204 {
			w.t.Fatal(got)
		}
		return "atk/plugin:1"
	}},
}

func volumeOf(name string) func(*world) string {
	return func(w *world) string {
		w.must(lab.Bob, "POST", "/volumes/create", `{"Name":"`+name+`"}`)
		return name
	}
}

func networkOf(who lab.Person, name string) func(*world) string {
	return func(w *world) string { return w.must(who, "POST", "/networks/create", `{"Name":"`+name+`"}`) }
}

// A world holds the things, and what the Engine says of each while nobody has
// attacked it.
type world struct {
	t    *testing.T
	id   map[string]string
	seen map[string]string
	// engine is a client of the Engine itself.
	engine *http.Client
	// plugins counts the plugins that were made: no two may be the same.
	plugins int
	// since is when bob was last seen to do something.
	since time.Time
	// strict is a proxy whose switches are all set to deny.
	strict *lab.Proxy
}

// newWorld makes all things; they are removed at the end of the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "strict.yaml")
	if err := os.WriteFile(conf, []byte("unowned_containers: deny\nunowned_resources: deny\nunknown_routes: deny\nbuilds: {buildkit: deny}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, id: make(map[string]string), seen: make(map[string]string), engine: lab.HTTPClient(theEngine.Socket)}
	w.strict = ownProxy(t, theEngine.Socket, "--config", conf)
	was := w.lists()
	t.Cleanup(func() {
		w.t = t
		w.removeAllBut(was)
		w.engine.CloseIdleConnections()
	})
	w.fill()
	return w
}

// fill makes what is missing and remembers how it looks.
func (w *world) fill() {
	w.t.Helper()
	// Where something cannot be made, there is nothing to go on with.
	was := w.seen
	w.seen = nil
	fresh := make(map[string]bool)
	for _, key := range order {
		if w.id[key] == "" {
			w.id[key] = things[key].make(w)
			fresh[key] = true
		}
	}
	for _, key := range order {
		// Others have joined a network since.
		if fresh[key] || things[key].kind == "networks" {
			was[key] = w.one(key)
		}
	}
	was["lists"] = w.lists()
	w.seen = was
}

// mend removes what the Engine has since the last look, and makes anew what
// looks different.
func (w *world) mend() {
	w.t.Helper()
	now, was := w.look(), w.seen
	if maps.Equal(now, was) {
		return
	}
	w.removeAllBut(was["lists"])
	if now["own"] != was["own"] {
		w.remove("containers", w.id["own"])
	}
	// Networks look as before when nobody is in them any more that was not.
	for _, key := range []string{"net", "idle net", "own net", "own"} {
		now[key] = w.one(key)
	}
	if now["exec"] != was["exec"] || now["tty"] != was["tty"] {
		// A container shows the end of an exec some time after the exec does.
		now["run"] = ""
	}
	stale := make(map[string]bool)
	for _, key := range order {
		stale[key] = now[key] != was[key]
		for _, need := range things[key].needs {
			stale[key] = stale[key] || stale[need]
		}
		stale[""] = stale[""] || stale[key]
	}
	if !stale[""] {
		return
	}
	for _, key := range slices.Backward(order) {
		if stale[key] {
			w.remove(things[key].kind, w.id[key])
			w.id[key] = ""
		}
	}
	w.fill()
}

// remove is best effort: the thing may be gone, or go with its container.
func (w *world) remove(kind, id string) {
	if kind != "exec" && id != "" {
		w.raw("DELETE", "/"+kind+"/"+id+"?force=1&v=1", "")
	}
}

// removeAllBut removes everything that is not in the lists.
func (w *world) removeAllBut(lists string) {
	for line := range strings.Lines(w.lists()) {
		kind, id, _ := strings.Cut(strings.Fields(line)[0], "/")
		if !strings.Contains(lists, id) {
			w.remove(kind, id)
		}
	}
}

// lists names everything that the Engine has, with an image's tags: containers
// first, since the rest can be removed only after them.
func (w *world) lists() string {
	w.t.Helper()
	var all []string
	for _, list := range []struct{ kind, path string }{
		{"containers", "/containers/json?all=1"}, {"networks", "/networks"}, {"volumes", "/volumes"}, {"images", "/images/json?all=1"}, {"plugins", "/plugins"},
	} {
		type item struct {
			ID       string `json:"Id"`
			Name     string
			RepoTags []string
		}
		text := []byte(w.raw("GET", list.path, "").body)
		var items []item
		if err := json.Unmarshal(text, &items); err != nil {
			var volumes struct{ Volumes []item }
			if err := json.Unmarshal(text, &volumes); err != nil {
				w.t.Fatalf("%s: %v: %s", list.path, err, text)
			}
			items = volumes.Volumes
		}
		var lines []string
		for _, it := range items {
			if it.ID == "" {
				it.ID = it.Name
			}
			slices.Sort(it.RepoTags)
			lines = append(lines, list.kind+"/"+it.ID+" "+strings.Join(it.RepoTags, " "))
		}
		slices.Sort(lines)
		all = append(all, lines...)
	}
	return strings.Join(all, "\n")
}

// look is an independent look at the Engine.
func (w *world) look() map[string]string {
	w.t.Helper()
	all := map[string]string{"lists": w.lists()}
	for _, key := range order {
		all[key] = w.one(key)
	}
	return all
}

// one is what the Engine says of one thing, with the files that
// are in it.
func (w *world) one(key string) string {
	w.t.Helper()
	one := things[key]
	path := "/" + one.kind + "/" + w.id[key]
	if one.kind != "networks" && one.kind != "volumes" {
		path += "/json"
	}
	got := w.raw("GET", path, "")
	if got.status != 200 {
		return ""
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(got.body), &v); err != nil {
		w.t.Fatalf("%s: %v", path, err)
	}
	if ids, ok := v["ExecIDs"].([]any); ok {
		slices.SortFunc(ids, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	}
	if dir, ok := v["Mountpoint"].(string); ok {
		v["Files"] = files(w.t, dir)
	}
	if key == "run" {
		changes := strings.Split(strings.Trim(w.raw("GET", "/containers/"+w.id[key]+"/changes", "").body, "[{}]\n"), "},{")
		slices.Sort(changes)
		v["Changes"] = changes
	}
	text, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// files reads the files of a directory.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(text)
	}
	return all
}

// forms are the ways to say a thing: by ID, by its first 12 digits, by as few as
// are enough, and by name.
func (w *world) forms(key string) []string {
	id, one := w.id[key], things[key]
	switch one.kind {
	case "volumes", "exec":
		return []string{id}
	}
	few, all := 1, "\n"+w.seen["lists"]
	for strings.Count(all, "\n"+one.kind+"/"+id[:few]) > 1 {
		few++
	}
	return []string{id, id[:12], id[:few], one.name}
}

// raw asks the Engine itself.
func (w *world) raw(method, target, body string) answer {
	w.t.Helper()
	return askBy(w.t, w.engine, method, target, body)
}

// must asks as a person, wants success, and returns the ID that comes back.
func (w *world) must(who lab.Person, method, target, body string) string {
	w.t.Helper()
	got := ask(w.t, theProxy.Socket(who), method, target, body)
	if got.status >= 300 {
		w.t.Fatalf("%s: %s %s: %d %s", who.Name, method, target, got.status, got.body)
	}
	return idIn(got)
}

// create makes a container of who's.
func (w *world) create(who lab.Person, name, body string) string {
	w.t.Helper()
	return w.must(who, "POST", "/containers/create?name="+name, body)
}

// idIn is the ID that an answer gives to what was made.
func idIn(a answer) string {
	var made struct{ ID string }
	if json.Unmarshal([]byte(a.body), &made) != nil {
		return ""
	}
	return made.ID
}

// inspect is what the Engine says of a container.
func (w *world) inspect(id string) (c inspected) {
	w.t.Helper()
	if err := json.Unmarshal([]byte(w.raw("GET", "/containers/"+url.PathEscape(id)+"/json", "").body), &c); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// inspected is what attacks look for in a container.
type inspected struct {
	ID     string `json:"Id"`
	State  struct{ Pid int }
	Config struct{ Labels map[string]string }
	Mounts []struct{ Name, Source string }

	HostConfig struct {
		CgroupParent, NetworkMode, PidMode, IpcMode string
		Links, VolumesFrom                          []string
	}
	NetworkSettings struct {
		IPAddress string
		Networks  map[string]struct{ NetworkID, IPAddress string }
	}
}
