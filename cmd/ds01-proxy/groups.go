package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// defaultGroup is the group of users whom the limits file does not name.
const defaultGroup = "student"

// groups is what the limits file says of who belongs where. Other tools read
// the same file; keys that are not about groups are theirs.
type groups struct {
	fallback    string
	byUser      map[string]string
	adminUsers  []string
	adminGroups []string
}

// of returns the group of a user.
func (g *groups) of(user string) string {
	if name, ok := g.byUser[user]; ok {
		return name
	}
	return g.fallback
}

// readGroups reads the limits file and the groups directory beside it. Files
// that are not there mean that everybody is in the default group.
func readGroups(path string) (*groups, error) {
	g := &groups{fallback: defaultGroup, byUser: make(map[string]string)}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return g, nil
	}
	if err != nil {
		return nil, fmt.Errorf("limits file: %w", err)
	}
	var file struct {
		DefaultGroup string `yaml:"default_group"`
		// Groups is kept as a node since the first group in file order wins.
		Groups        yaml.Node `yaml:"groups"`
		AccessControl struct {
			AdminUsers []string `yaml:"admin_users"`
			AdminGroup string   `yaml:"admin_group"`
		} `yaml:"access_control"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("limits file %s: %w", path, err)
	}
	if file.DefaultGroup != "" {
		g.fallback = file.DefaultGroup
	}
	g.adminUsers = file.AccessControl.AdminUsers
	if file.AccessControl.AdminGroup != "" {
		g.adminGroups = []string{file.AccessControl.AdminGroup}
	}
	all := &file.Groups
	for all.Kind == yaml.AliasNode {
		all = all.Alias
	}
	if all.Kind != 0 && all.Kind != yaml.MappingNode && all.Tag != "!!null" {
		return nil, fmt.Errorf("limits file %s: line %d: groups is not a mapping of names to groups", path, all.Line)
	}
	for i := 0; i+1 < len(all.Content); i += 2 {
		name := all.Content[i].Value
		var group struct {
			Members []string `yaml:"members"`
		}
		if err := all.Content[i+1].Decode(&group); err != nil {
			return nil, fmt.Errorf("limits file %s: group %s: %w", path, name, err)
		}
		listed, err := readMembers(filepath.Join(filepath.Dir(path), "groups", filepath.Base(name)+".members"))
		if err != nil {
			return nil, err
		}
		for _, user := range append(group.Members, listed...) {
			if _, taken := g.byUser[user]; !taken {
				g.byUser[user] = name
			}
		}
	}
	return g, nil
}

// readMembers reads a file with a user name per line and comments from #.
func readMembers(path string) ([]string, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("members of a group: %w", err)
	}
	defer f.Close()
	var names []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if name := strings.TrimSpace(line); name != "" {
			names = append(names, name)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("members of a group, %s: %w", path, err)
	}
	return names, nil
}
