console.log(require("mustache").render("<p>hello from {{who}}</p>", { who: "npm" }));
