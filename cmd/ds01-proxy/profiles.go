package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/limits"
)

//go:embed profiles.yaml
var builtInProfiles []byte

// A profileFile is a profile as it is written. Lists that are not there are those of
// the profile that it comes from.
type profileFile struct {
	From              string      `yaml:"from,omitempty"`
	OwnershipOnly     bool        `yaml:"ownership_only"`
	Privileged        bool        `yaml:"privileged"`
	CapAdd            []string    `yaml:"cap_add"`
	CapDrop           []string    `yaml:"cap_drop"`
	SecurityOpt       []string    `yaml:"security_opt"`
	NoNewPrivileges   bool        `yaml:"no_new_privileges"`
	Network           []string    `yaml:"network"`
	PID               []string    `yaml:"pid"`
	IPC               []string    `yaml:"ipc"`
	UTS               []string    `yaml:"uts"`
	Userns            []string    `yaml:"userns"`
	Cgroupns          []string    `yaml:"cgroupns"`
	Devices           []string    `yaml:"devices"`
	DeviceCgroupRules []string    `yaml:"device_cgroup_rules"`
	GPUs              bool        `yaml:"gpus"`
	Runtime           []string    `yaml:"runtime"`
	Sysctl            []string    `yaml:"sysctl"`
	Annotation        []string    `yaml:"annotation"`
	Ulimit            []string    `yaml:"ulimit"`
	LogDriver         []string    `yaml:"log_driver"`
	StorageOpt        []string    `yaml:"storage_opt"`
	Publish           publishFile `yaml:"publish"`
	Restart           []string    `yaml:"restart"`
	GroupAdd          []string    `yaml:"group_add"`
	Binds             []bindFile  `yaml:"binds"`
	BindsAsRoot       bool        `yaml:"binds_as_root"`
	BindsUnmapped     bool        `yaml:"binds_unmapped"`
	Map               []string    `yaml:"map"`
	VolumeOpt         bool        `yaml:"volume_opt"`
	FailClosed        bool        `yaml:"fail_closed"`
}

type publishFile struct {
	MinPort   int      `yaml:"min_port"`
	Addresses []string `yaml:"addresses"`
}

type bindFile struct {
	Path     string `yaml:"path"`
	ReadOnly bool   `yaml:"read_only"`
}

// A profileSource is a profile, and where each of its keys was written.
type profileSource struct {
	file profileFile
	// lines say where a key was set: "profile confined" or "line 12".
	lines map[string]string
}

// profiles are all profiles by name.
type profiles map[string]*profileSource

// readProfiles reads the built-in profiles and, over them, those of the configuration.
func readProfiles(own map[string]yaml.Node) (profiles, problems) {
	var built map[string]yaml.Node
	if err := yaml.Unmarshal(builtInProfiles, &built); err != nil {
		return nil, problems{"built-in profiles: " + err.Error()}
	}
	r := &profileReader{nodes: make(map[string]profileNode), done: make(profiles), under: make(map[string]bool)}
	for name, node := range built {
		r.nodes[name] = profileNode{node, "profile " + name}
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		node := own[name]
		if _, taken := built[name]; taken {
			r.problems = append(r.problems, fmt.Sprintf("line %d: profiles.%s: is built in; give yours another name, with from: %s", node.Line, name, name))
			continue
		}
		r.nodes[name] = profileNode{node, ""}
	}
	for _, name := range slices.Sorted(maps.Keys(r.nodes)) {
		if r.read(name) == nil {
			r.done[name] = nil
		}
	}
	maps.DeleteFunc(r.done, func(_ string, p *profileSource) bool { return p == nil })
	return r.done, r.problems
}

// A profileNode is a profile that is yet to be read; place says where it is
// written, or nothing for the configuration's own lines.
type profileNode struct {
	node  yaml.Node
	place string
}

type profileReader struct {
	nodes    map[string]profileNode
	done     profiles
	under    map[string]bool
	problems problems
}

func (r *profileReader) say(name string, line int, format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf("line %d: profiles.%s: ", line, name)+fmt.Sprintf(format, args...))
}

// read reads one profile and those that it comes from; nil where it cannot be read.
func (r *profileReader) read(name string) *profileSource {
	if done, ok := r.done[name]; ok {
		return done
	}
	from := r.nodes[name]
	node := from.node
	if node.Kind != yaml.MappingNode {
		r.say(name, node.Line, "is not a mapping of keys such as cap_add")
		return nil
	}
	if r.under[name] {
		r.say(name, node.Line, "comes from itself")
		return nil
	}
	r.under[name] = true
	defer delete(r.under, name)
	p := &profileSource{lines: make(map[string]string)}
	var head struct {
		From string `yaml:"from"`
	}
	_ = node.Decode(&head)
	if head.From != "" {
		if _, ok := r.nodes[head.From]; !ok {
			r.say(name, node.Line, "there is no profile %q to come from", head.From)
			return nil
		}
		base := r.read(head.From)
		if base == nil {
			r.done[head.From] = nil
			return nil
		}
		p.file = base.file
		maps.Copy(p.lines, base.lines)
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if !profileKeys[key.Value] {
			r.say(name, key.Line, "unknown key %s", key.Value)
		}
		if key.Value == "publish" {
			r.checkPublish(name, value)
		}
	}
	var bad *yaml.TypeError
	switch err := node.Decode(&p.file); {
	case errors.As(err, &bad):
		for _, e := range bad.Errors {
			r.problems = append(r.problems, wordYAML(e))
		}
		return nil
	case err != nil:
		r.say(name, node.Line, "%v", err)
		return nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		where := from.place
		if where == "" {
			where = fmt.Sprintf("line %d", node.Content[i].Line)
		}
		p.lines[node.Content[i].Value] = where
	}
	r.check(name, node.Line, &p.file)
	r.done[name] = p
	return p
}

// checkPublish looks at the keys below publish, which are those of the basis where
// they are not there.
func (r *profileReader) checkPublish(name string, node *yaml.Node) {
	for i := 0; i+1 < len(node.Content) && node.Kind == yaml.MappingNode; i += 2 {
		if key := node.Content[i]; key.Value != "min_port" && key.Value != "addresses" {
			r.say(name, key.Line, "unknown key publish.%s", key.Value)
		}
	}
}

// profileKeys are the keys that a profile may have, in the order of the file.
var profileKeys, profileOrder = func() (map[string]bool, []string) {
	known := make(map[string]bool)
	var order []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[profileFile]()) {
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		known[key] = true
		order = append(order, key)
	}
	return known, order
}()

// check looks at values that mean nothing.
func (r *profileReader) check(name string, line int, f *profileFile) {
	for _, caps := range [][]string{f.CapAdd, f.CapDrop} {
		for i, c := range caps {
			caps[i] = strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		}
	}
	for _, of := range []struct {
		key  string
		list []string
	}{{"network", f.Network}, {"pid", f.PID}, {"ipc", f.IPC}, {"uts", f.UTS}, {"userns", f.Userns}, {"cgroupns", f.Cgroupns}} {
		for _, value := range of.list {
			if value != "host" {
				r.say(name, line, "%s: %q is not host", of.key, value)
			}
		}
	}
	for _, pattern := range f.Devices {
		if _, err := path.Match(pattern, "/dev/x"); err != nil || !strings.HasPrefix(pattern, "/dev/") || path.Clean(pattern) != pattern {
			r.say(name, line, "devices: %q is not a path below /dev", pattern)
		}
	}
	for _, b := range f.Binds {
		if p := strings.Replace(b.Path, "$HOME", "/home", 1); !strings.HasPrefix(p, "/") || path.Clean(p) != p || p == "/" {
			r.say(name, line, "binds: %q is neither $HOME nor an absolute path, or is /", b.Path)
		}
	}
	for _, m := range f.Map {
		if !slices.Contains([]string{"auto", "user", "root", "none"}, m) {
			r.say(name, line, "map: %q is none of auto, user, root, none", m)
		}
	}
	if f.Publish.MinPort < 0 || f.Publish.MinPort > 65535 {
		r.say(name, line, "publish.min_port: %d is not a port", f.Publish.MinPort)
	}
}

// policy returns a profile as the rules see it.
func (p *profileSource) policy(name string) *policy.Profile {
	f := &p.file
	var binds []policy.BindRoot
	for _, b := range f.Binds {
		binds = append(binds, policy.BindRoot(b))
	}
	return &policy.Profile{
		Name: name, OwnershipOnly: f.OwnershipOnly, Privileged: f.Privileged, CapAdd: f.CapAdd, CapDrop: f.CapDrop,
		SecurityOpt: f.SecurityOpt, NoNewPrivileges: f.NoNewPrivileges,
		Network: f.Network, PID: f.PID, IPC: f.IPC, UTS: f.UTS, Userns: f.Userns, Cgroupns: f.Cgroupns,
		Devices: f.Devices, DeviceCgroupRules: f.DeviceCgroupRules, GPUs: f.GPUs, Runtime: f.Runtime,
		Sysctl: f.Sysctl, Annotation: f.Annotation, Ulimit: f.Ulimit, LogDriver: f.LogDriver, StorageOpt: f.StorageOpt,
		MinPort: f.Publish.MinPort, PublishIP: f.Publish.Addresses, Restart: f.Restart, GroupAdd: f.GroupAdd,
		Binds: binds, BindsAsRoot: f.BindsAsRoot, BindsUnmapped: f.BindsUnmapped, Map: f.Map, VolumeOpt: f.VolumeOpt, FailClosed: f.FailClosed,
	}
}

// profileOf is the name of a user's profile, and which key of the configuration
// gives it.
func (c *config) profileOf(user, group string) (name, key string) {
	if name, ok := c.ProfileUsers[user]; ok {
		return name, "profile_users." + user
	}
	if name, ok := c.ProfileGroups[group]; ok {
		return name, "profile_groups." + group
	}
	return c.Profile, "profile"
}

// explain prints what a user may do and take, and where each line comes from.
func (c *config) explain(out io.Writer, user, group string, l *limits.Store) error {
	name, key := c.profileOf(user, group)
	source := c.read[name]
	where := strings.TrimSuffix(lineOf(&c.root, strings.Split(key, ".")...), ": ")
	if where == "" {
		where = "default"
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "WHAT\tFROM\tVALUE\n")
	fmt.Fprintf(t, "user\t\t%s\n", user)
	fmt.Fprintf(t, "group\t%s\t%s\n", c.LimitsFile, group)
	fmt.Fprintf(t, "enforcement\t\t%s\n", c.modeOf(user, group))
	fmt.Fprintf(t, "profile\t%s: %s\t%s\n", key, where, name)
	values := reflect.ValueOf(source.file)
	for i, key := range profileOrder {
		if key == "from" {
			continue
		}
		text := strings.Trim(fmt.Sprint(values.Field(i).Interface()), "[]")
		switch key {
		case "binds":
			var words []string
			for _, b := range source.file.Binds {
				word := b.Path
				if b.ReadOnly {
					word += ":ro"
				}
				words = append(words, word)
			}
			text = strings.Join(words, " ")
		case "publish":
			text = fmt.Sprintf("min_port %d, addresses %v", source.file.Publish.MinPort, source.file.Publish.Addresses)
		}
		if source.file.OwnershipOnly && key != "ownership_only" {
			continue
		}
		from := source.lines[key]
		if from == "" {
			from = "not set"
		}
		if text == "" {
			text = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", key, from, text)
	}
	for _, line := range l.Explain(user, group) {
		fmt.Fprintf(t, "%s\t%s\t%s\n", line.Key, line.From, line.Value)
	}
	return t.Flush()
}
