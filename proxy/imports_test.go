package proxy

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ds01/ds01-proxy/"

// mayImport says which of our packages each of our packages may import: one way,
// from cmd to policy.
var mayImport = map[string][]string{
	"cmd/ds01-proxy":  {"cgroupstat", "proxy", "proxy/audit", "proxy/binds", "proxy/engine", "proxy/images", "proxy/layers", "proxy/limits", "proxy/peercred", "proxy/quota", "proxy/users", "policy", "units"},
	"proxy":           {"cgroupstat", "proxy/audit", "proxy/binds", "proxy/engine", "proxy/images", "proxy/layers", "proxy/peercred", "proxy/quota", "policy", "units"},
	"proxy/quota":     {"cgroupstat", "policy"},
	"proxy/audit":     {},
	"proxy/engine":    {"policy"},
	"proxy/images":    {"proxy/statefile"},
	"proxy/binds":     {"proxy/statefile"},
	"proxy/layers":    {},
	"proxy/statefile": {},
	"proxy/limits":    {"policy"},
	"proxy/peercred":  {},
	"proxy/users":     {"policy", "units"},
	"cgroupstat":      {"policy"},
	"units":           {"policy"},
	"policy":          {},
	"integration":     {"integration/lab"},
	"integration/lab": {},
}

// TestImportsRunOneWay holds the import graph.
func TestImportsRunOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var pkg struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(pkg.ImportPath, module)
		allowed, known := mayImport[name]
		if strings.HasPrefix(name, "integration/") {
			allowed, known = mayImport["integration"], true
		}
		if !known {
			t.Errorf("package %s is not in the picture of the house", name)
			continue
		}
		seen++
		for _, path := range pkg.Imports {
			ours, is := strings.CutPrefix(path, module)
			if is && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s", name, ours)
			}
			if name == "policy" && !is && strings.Contains(path, ".") && !strings.HasPrefix(path, "github.com/docker/docker/api/types") {
				t.Errorf("policy imports %s; it may use the standard library and Docker's API types", path)
			}
			if name == "policy" && slices.Contains([]string{"os", "net", "net/http", "io", "os/exec", "syscall"}, path) {
				t.Errorf("policy imports %s; it does no I/O", path)
			}
		}
	}
	if seen < len(mayImport)-1 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// TestInterfacesAreSmall holds that what the proxy consumes is declared here, in
// interfaces of at most three methods.
func TestInterfacesAreSmall(t *testing.T) {
	for name, methods := range map[string]int{
		"Owners": numMethod[Owners](), "Ledger": numMethod[Ledger](), "Directory": numMethod[Directory](),
		"Recorder": numMethod[Recorder](), "Peers": numMethod[Peers](), "Processes": numMethod[Processes](),
		"Resources": numMethod[Resources](), "Catalog": numMethod[Catalog](), "Census": numMethod[Census](), "Index": numMethod[Index](), "Names": numMethod[Names](),
		"Images": numMethod[Images](), "Registry": numMethod[Registry](), "Tags": numMethod[Tags](), "Writings": numMethod[Writings](), "Forgetter": numMethod[Forgetter](),
		"Stage": numMethod[Stage](), "Staged": numMethod[Staged](), "Remounter": numMethod[Remounter](), "Users": numMethod[Users](), "Links": numMethod[Links](), "Layouts": numMethod[Layouts](),
	} {
		if methods == 0 || methods > 3 {
			t.Errorf("%s has %d methods", name, methods)
		}
	}
}

func numMethod[T any]() int { return reflect.TypeFor[T]().NumMethod() }
