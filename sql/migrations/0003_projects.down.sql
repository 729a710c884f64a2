DROP TABLE workspaces;
DROP TABLE projects;
