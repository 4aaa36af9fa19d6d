package integration

import (
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// An attack is one thing that alice tries on what is bob's.
type attack struct {
	// row is the row of the route table that it goes by: a method and a template.
	// field is what it abuses of a container's creation, where it goes by that.
	row, field string
	// method is what is sent where the row takes any.
	method string
	// name says what is special about it, where several go by one row.
	name string
	// target and body are what is sent. Words in underscores stand for what only
	// the world knows; _REF_ stands for the thing ref, in each of its forms.
	target, body, ref string
	header            []string
	// send sends something else than one plain request.
	send func(w *world, socket, target, body string) answer
	// prepare is done before.
	prepare func(w *world)
	// worked reports whether the attack worked, by the answer and by what the
	// Engine says; nil where the attack works nowhere.
	worked func(w *world, a answer) bool
	// status and says are what the proxy answers: 403 and "belongs to bob" where
	// they are not set.
	status int
	says   string
	// free is true where the thing's name is free to alice, so that there is nothing
	// by it.
	free bool
	// alters is true where the proxy lets alice make or remove something, which is
	// her own.
	alters bool
	// strict is true where the proxy lets it through unless its switches say deny.
	strict bool
	// rawFails says why the attack does not work on the raw Engine.
	rawFails string
}

// attacks is the table.
func attacks() []attack {
	var all []attack
	for _, family := range [][]attack{
		containerAttacks(), execAttacks(), createAttacks(), networkAttacks(), volumeAttacks(),
		buildAttacks(), imageAttacks(), pruneAttacks(), systemAttacks(), adminAttacks(),
	} {
		all = append(all, family...)
	}
	return all
}

func (a *attack) title() string {
	var words []string
	for _, word := range []string{a.row, a.field, a.name} {
		if word != "" {
			words = append(words, word)
		}
	}
	return strings.ReplaceAll(strings.Join(words, ", "), "/", "|")
}

// TestAttacks sends every attack by alice's socket, by every form of its
// reference: it must be refused, and a look at the Engine must show nothing
// changed. Then it sends the same to the Engine itself, where it must work, or
// fail as it is marked to.
func TestAttacks(t *testing.T) {
	w := newWorld(t)
	for _, a := range attacks() {
		t.Run(a.title(), func(t *testing.T) {
			w.t = t
			w.attack(&a)
		})
		if w.seen == nil {
			t.Fatal("what was attacked cannot be made anew")
		}
	}
}

func (w *world) attack(a *attack) {
	w.t.Helper()
	if a.prepare != nil {
		a.prepare(w)
	}
	var got answer
	refs := w.references(a)
	for _, ref := range refs {
		got = w.try(a, w.socket(a), ref)
		a.check(w.t, ref, got)
	}
	after := w.look()
	for key, was := range w.seen {
		if after[key] != was && !(a.alters && slices.Contains([]string{"lists", "own", "own net"}, key)) {
			w.t.Errorf("by the proxy, %s changed:\n%s\n%s", key, apart(was, after[key]), apart(after[key], was))
		}
	}
	if a.worked != nil && a.worked(w, got) {
		w.t.Errorf("it works by the proxy: %d %s", got.status, got.body)
	}
	if a.alters {
		w.mend()
	}
	got = w.try(a, theEngine.Socket, refs[len(refs)-1])
	switch worked := a.worked != nil && a.worked(w, got); {
	case !worked && a.rawFails == "":
		w.t.Errorf("it does not work on the Engine itself: %d %.2000s", got.status, got.body)
	case worked && a.rawFails != "":
		w.t.Errorf("it works on the Engine itself, and is marked as failing (%s): %d %.2000s", a.rawFails, got.status, got.body)
	case a.rawFails != "" && a.worked == nil && got.status < 300:
		w.t.Errorf("the Engine itself does not refuse it (%s): %d %.2000s", a.rawFails, got.status, got.body)
	}
	if verb := a.verb(); verb != "GET" && verb != "HEAD" || a.send != nil {
		w.mend()
	}
}

// apart is what a has and b has not, from a little before that on.
func apart(a, b string) string {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[max(0, n-100):min(len(a), n+300)]
}

// check wants the proxy's answer to be what the table says, and to tell nothing.
func (a *attack) check(t *testing.T, ref string, got answer) {
	t.Helper()
	status, says := a.status, a.says
	if a.free && ref == things[a.ref].name {
		status, says = http.StatusNotFound, "not found"
	}
	if status == 0 {
		status = http.StatusForbidden
	}
	if says == "" && status == http.StatusForbidden {
		says = "belongs to bob"
	}
	if got.status != status || a.verb() != "HEAD" && !strings.Contains(got.body, says) {
		t.Errorf("by %q: %d %.2000s, want %d %s", ref, got.status, got.body, status, says)
	}
	if strings.Contains(got.body, "atk-secret") {
		t.Errorf("by %q the answer tells: %.2000s", ref, got.body)
	}
}

// references are what an attack calls its thing: outside of a path a container's
// name may begin with a slash.
func (w *world) references(a *attack) []string {
	if a.ref == "" {
		return []string{""}
	}
	refs := w.forms(a.ref)
	path, _, _ := strings.Cut(a.target, "?")
	if things[a.ref].kind == "containers" && !strings.Contains(path, "_REF_") {
		refs = append([]string{"/" + things[a.ref].name}, refs...)
	}
	return refs
}

// try sends an attack to a socket.
func (w *world) try(a *attack, socket, ref string) answer {
	w.t.Helper()
	target, body := w.words(a.target, ref), w.words(a.body, ref)
	if a.send != nil {
		return a.send(w, socket, target, body)
	}
	return ask(w.t, socket, a.verb(), target, body, a.header...)
}

// socket is alice's own.
func (w *world) socket(a *attack) string {
	if a.strict {
		return w.strict.Socket(lab.Alice)
	}
	return theProxy.Socket(lab.Alice)
}

func (a *attack) verb() string {
	if a.method != "" {
		return a.method
	}
	method, _, _ := strings.Cut(a.row, " ")
	return method
}

// words puts what the world knows in the place of words in underscores.
func (w *world) words(text, ref string) string {
	return strings.NewReplacer(
		"_REF_", ref,
		"_OWN_", w.id["own"],
		"_OFF_", w.id["off"],
		"_NET_", w.id["net"],
		"_IMAGE_", w.id["image"],
		"_SHORT_", w.id["run"][:12],
		"_NET12_", w.id["net"][:12],
		"_SINCE_", stamp(w.since),
		"_NOW_", stamp(time.Now()),
		"_VOLUME_", theEngine.Dir+"/data/volumes/atk-vol/_data",
		"_SLICE_", "/ds01.slice/ds01-student.slice/ds01-student-bob.slice",
	).Replace(text)
}

// query writes a target with parameters that need encoding.
func query(path string, pairs ...string) string {
	for i := 0; i+1 < len(pairs); i += 2 {
		sep := "&"
		if !strings.Contains(path, "?") {
			sep = "?"
		}
		path += sep + pairs[i] + "=" + url.QueryEscape(pairs[i+1])
	}
	return path
}

// tells wants a text in the answer.
func tells(text string) func(*world, answer) bool {
	return func(_ *world, a answer) bool { return a.status < 300 && strings.Contains(a.body, text) }
}

// answers wants a status.
func answers(status int) func(*world, answer) bool {
	return func(_ *world, a answer) bool { return a.status == status }
}

// shows wants a text in what the Engine says of a thing.
func shows(key, text string) func(*world, answer) bool {
	return func(w *world, _ answer) bool { return strings.Contains(w.one(key), text) }
}

// differs wants a thing to look otherwise than before.
func differs(key string) func(*world, answer) bool {
	return func(w *world, _ answer) bool { return w.one(key) != w.seen[key] }
}

// gone wants a thing not to be there any more.
func gone(key string) func(*world, answer) bool {
	return func(w *world, _ answer) bool { return w.one(key) == "" }
}

// made wants a container to have been made that is as wanted.
func made(wanted func(w *world, c inspected) bool) func(*world, answer) bool {
	return func(w *world, a answer) bool {
		return a.status == http.StatusCreated && wanted(w, w.inspect(idIn(a)))
	}
}

// harmless are rows that no attack goes by, and why.
var harmless = map[string]string{
	"GET /_ping":                "says nothing about users",
	"HEAD /_ping":               "says nothing about users",
	"GET /version":              "says nothing about users",
	"POST /auth":                "a registry is asked, nobody's things are",
	"GET /images/search":        "a registry is asked, nobody's things are",
	"GET /distribution/{}/json": "a registry is asked, nobody's things are",
	"GET /images/json":          "images are shared; TestPrivateImages is about where they are not",
	"GET /images/get":           "images are shared",
	"GET /images/{}/get":        "images are shared",
	"GET /images/{}/history":    "images are shared",
	"GET /images/{}/json":       "images are shared",
	"POST /images/{}/push":      "images are shared",
}

// createFields are the fields of a container's creation by which another user's
// things can be reached.
var createFields = []string{
	"Labels", "VolumesFrom", "Links", "NetworkMode", "PidMode", "IpcMode", "EndpointsConfig", "NetworkID",
	"other modes", "Binds", "Mounts", "DriverConfig", "CgroupParent", "top level", "name",
}

// noRows are methods that no row of the route table knows.
var noRows = []string{"OPTIONS *", "CONNECT *", "PRI *"}

// TestTheAttackTableIsComplete reads the proxy's route table and wants an attack
// by every row and by every field, or the reason why there is none.
func TestTheAttackTableIsComplete(t *testing.T) {
	rows := make(map[string]int)
	for _, row := range append(routeTable(t), noRows...) {
		rows[row] = 0
	}
	fields := make(map[string]int)
	for _, field := range createFields {
		fields[field] = 0
	}
	titles := make(map[string]bool)
	for _, a := range attacks() {
		if titles[a.title()] {
			t.Errorf("%s stands twice", a.title())
		}
		titles[a.title()] = true
		count(t, "row", rows, a.row)
		if a.row == "POST /containers/create" {
			count(t, "field", fields, a.field)
		}
	}
	for row, why := range harmless {
		if n, ok := rows[row]; !ok || n > 0 {
			t.Errorf("%s is listed as harmless (%s), and is no row or has attacks", row, why)
		}
		rows[row]++
	}
	for name, missing := range map[string]map[string]int{"row": rows, "field": fields} {
		for what, n := range missing {
			if n == 0 {
				t.Errorf("no attack goes by the %s %s", name, what)
			}
		}
	}
}

func count(t *testing.T, name string, in map[string]int, what string) {
	t.Helper()
	if _, ok := in[what]; !ok {
		t.Errorf("there is no %s %q", name, what)
	}
	in[what]++
}

// routeTable reads the rows out of the proxy's source: a method and a template
// in which every variable is {}.
func routeTable(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../proxy/routes.go")
	if err != nil {
		t.Fatal(err)
	}
	methods := map[string]string{"get": "GET", "head": "HEAD", "post": "POST", "put": "PUT", "del": "DELETE", "anyMethod": "ANY"}
	variable := regexp.MustCompile(`\{[^}]*\}`)
	var rows []string
	for _, m := range regexp.MustCompile(`\{method: (\w+), path: "([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
		rows = append(rows, methods[m[1]]+" "+variable.ReplaceAllString(m[2], "{}"))
	}
	if n := strings.Count(string(text), "{method: "); len(rows) != n || n < 110 {
		t.Fatalf("%d of %d rows were read", len(rows), n)
	}
	return rows
}
